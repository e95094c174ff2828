#!/usr/bin/env bash
# Makes the certificates in this folder: see README.md.
set -euo pipefail
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

touch "$work/index"
cat >"$work/config" <<END
[ca]
default_ca = tests
[tests]
database = $work/index
new_certs_dir = $work
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
END

# NAME SIGNER EXTENSION...: a key and a certificate. `openssl ca` can set both dates, so that no
# clock of a test is too early.
certificate() {
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1-key.pem"
    openssl req -new -key "$1-key.pem" -subj "/CN=flux-fast tests: $1" -out "$work/request"
    local signer=(-cert "$2.pem" -keyfile "$2-key.pem")
    [ "$1" != "$2" ] || signer=(-selfsign -keyfile "$2-key.pem")
    openssl ca -batch -notext -config "$work/config" "${signer[@]}" \
        -in "$work/request" -out "$1.pem" \
        -startdate 20200101000000Z -enddate 20991231235959Z \
        -extfile <(printf '%s\n' "${@:3}")
}

authority=(basicConstraints=critical,CA:TRUE keyUsage=critical,keyCertSign,cRLSign)
certificate ca ca "${authority[@]}"
certificate other-ca other-ca "${authority[@]}"
leaf=basicConstraints=critical,CA:FALSE
certificate server ca "$leaf" subjectAltName=IP:127.0.0.1 extendedKeyUsage=serverAuth
certificate client ca "$leaf" extendedKeyUsage=clientAuth
# Nothing else is signed.
rm ca-key.pem other-ca-key.pem
