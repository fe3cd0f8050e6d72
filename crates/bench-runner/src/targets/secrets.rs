//! What opens a server: handed to its target, never to the store.
//!
//! A server may repeat a key in the text of an error, so whoever stores such a text scrubs it first.

use std::fmt;

/// Put in the place of a secret.
pub const HIDDEN: &str = "***";
/// A shorter value would be found by chance, and hides nothing.
const SHORTEST: usize = 4;

/// Key and headers of the requests to a server.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secrets {
    /// Sent as `Authorization: Bearer`, unless `headers` has that name.
    pub api_key: Option<String>,
    /// Names and values as given.
    pub headers: Vec<(String, String)>,
}

impl Secrets {
    /// `text` with every secret in it replaced by `***`.
    pub fn scrub(&self, text: &str) -> String {
        let values = self.api_key.iter().chain(self.headers.iter().map(|(_, value)| value));
        // `Bearer KEY` is one value, KEY alone another: servers repeat either.
        let mut secrets: Vec<&str> = values
            .flat_map(|v| [Some(v.as_str()), v.split_once(' ').map(|(_, key)| key)])
            .flatten()
            .collect();
        secrets.retain(|secret| secret.len() >= SHORTEST);
        secrets.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets.into_iter().fold(text.to_owned(), |text, secret| text.replace(secret, HIDDEN))
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<_> = self.headers.iter().map(|(name, _)| (name, HIDDEN)).collect();
        let api_key = self.api_key.as_ref().map(|_| HIDDEN);
        f.debug_struct("Secrets").field("api_key", &api_key).field("headers", &headers).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_shows_them() {
        let secrets = Secrets {
            api_key: Some("abcd".to_owned()),
            headers: vec![
                ("Authorization".to_owned(), "Bearer abcdefgh".to_owned()),
                ("x-a".to_owned(), "1".to_owned()),
            ],
        };
        let debug = format!("{secrets:?}");
        assert!(
            debug.contains("Authorization") && !debug.contains("abcd") && !debug.contains('1'),
            "{debug}"
        );
        for (text, expected) in [
            ("bad key abcdefgh!", "bad key ***!"),
            ("`Bearer abcdefgh` and abcd", "`***` and ***"),
            ("error 1", "error 1"),
        ] {
            assert_eq!(secrets.scrub(text), expected);
        }
    }
}
