//! Links to results that work without a key, for a while: name and time are signed.

use sha2::{Digest, Sha256};

use super::access::hash;
use super::job::hex;

/// How long a link works, in seconds.
const LIFE: u64 = 600;
/// The block of SHA-256, in bytes.
const BLOCK: usize = 64;

/// Signs links with a secret of this process.
pub struct Links {
    secret: [u8; 32],
}

impl Links {
    /// Signs with `secret`.
    pub fn new(secret: String) -> Self {
        Links { secret: hash(&secret) }
    }

    /// The path and query of a link to the result called `name`, at `now` in seconds since 1970.
    pub fn link(&self, name: &str, now: f64) -> String {
        let expires = now as u64 + LIFE;
        format!("/results/{name}?expires={expires}&signature={}", self.signature(name, expires))
    }

    /// Whether the signature is right and has not expired at `now`.
    pub fn check(&self, name: &str, expires: u64, signature: &str, now: f64) -> bool {
        let right = hash(&self.signature(name, expires)) == hash(signature);
        right && expires as f64 >= now
    }

    fn signature(&self, name: &str, expires: u64) -> String {
        hex(&hmac(&self.secret, format!("{expires}/{name}").as_bytes()))
    }
}

/// HMAC-SHA256.
pub fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let hashed: [u8; 32];
    let key = match key.len() > BLOCK {
        true => {
            hashed = Sha256::digest(key).into();
            &hashed
        }
        false => key,
    };
    let pad = |with: u8| {
        let mut block = [with; BLOCK];
        block.iter_mut().zip(key).for_each(|(b, k)| *b ^= k);
        block
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mac_is_that_of_rfc_4231() {
        // Test cases 2 and 6.
        let mac = hex(&hmac(b"Jefe", b"what do ya want for nothing?"));
        assert_eq!(mac, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        let message = b"Test Using Larger Than Block-Size Key - Hash Key First";
        let mac = hex(&hmac(&[0xaa; 131], message));
        assert_eq!(mac, "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
    }

    #[test]
    fn a_link_is_for_one_name_until_it_expires() {
        let links = Links::new("secret".into());
        let link = links.link("a-0.png", 1e9);
        let (name, query) = link.strip_prefix("/results/").unwrap().split_once('?').unwrap();
        let mut values = query.split('&').map(|pair| pair.split_once('=').unwrap().1);
        let (expires, signature) =
            (values.next().unwrap().parse().unwrap(), values.next().unwrap());
        assert!(links.check(name, expires, signature, 1e9));
        assert!(!links.check("b-0.png", expires, signature, 1e9));
        assert!(!links.check(name, expires + 1, signature, 1e9));
        assert!(!links.check(name, 1, &links.signature(name, 1), 1e9));
        assert!(!Links::new("other".into()).check(name, expires, signature, 1e9));
    }
}
