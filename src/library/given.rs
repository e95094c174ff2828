//! Small files that the user names on the command line or in a variable: keys and certificates.
//! They may be pipes (`--key-file <(pass show flux)`), so that only their length is bounded.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

use crate::units;
pub use certificates::root_certs;

/// The most bytes of such a file: lists of all well-known authorities have a quarter of it.
const MOST: u64 = 1 << 20;

/// The content of the file at `path`.
///
/// # Errors
/// Those of the system; [`ErrorKind::FileTooLarge`] for a file above 1 MiB.
pub fn read_given(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MOST {
        true => {
            let text = format!("it has more than {}", units::bytes(MOST));
            Err(Error::new(ErrorKind::FileTooLarge, text))
        }
        false => Ok(bytes),
    }
}

mod certificates {
    use std::path::Path;

    use ureq::tls::{Certificate, PemItem, RootCerts, parse_pem};

    use super::read_given;
    use crate::error::{Error, Result};

    /// The certificates in a PEM file.
    ///
    /// # Errors
    /// [`Kind::Missing`](crate::error::Kind::Missing) if it cannot be read,
    /// [`Kind::Argument`](crate::error::Kind::Argument) if it has none.
    pub fn root_certs(path: &Path) -> Result<RootCerts> {
        let text = read_given(path).map_err(|e| {
            Error::missing(format!("the certificates cannot be read: {e}")).at_path(path)
        })?;
        let certificates: Vec<Certificate<'static>> = parse_pem(&text)
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .collect();
        match certificates.is_empty() {
            true => Err(Error::argument("the file contains no certificate")
                .at_path(path)
                .expected("-----BEGIN CERTIFICATE-----")),
            false => Ok(RootCerts::new_with_certs(&certificates)),
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::error::Kind;

        #[test]
        fn certificates_are_read_from_pem_files() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("ca.pem");
            assert_eq!(root_certs(&path).unwrap_err().kind(), Kind::Missing);
            for text in [
                "",
                "no certificate",
                "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----",
            ] {
                std::fs::write(&path, text).unwrap();
                assert_eq!(root_certs(&path).unwrap_err().kind(), Kind::Argument, "{text}");
            }
            let one = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
            std::fs::write(&path, format!("# two\n{one}{one}")).unwrap();
            let RootCerts::Specific(found) = root_certs(&path).unwrap() else { panic!() };
            assert_eq!(found.len(), 2);
            std::fs::write(&path, one.repeat(20_000)).unwrap();
            let error = root_certs(&path).unwrap_err();
            assert!(error.to_string().contains("more than"), "{error}");
        }
    }
}
