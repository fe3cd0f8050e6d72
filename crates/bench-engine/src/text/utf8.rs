//! Text from tokens as soon as it is whole.
//!
//! A token may end inside a UTF-8 sequence; the stream holds such bytes back until the rest comes.

use super::tokenizer::Tokenizer;

/// Collects bytes and gives the text that is complete.
#[derive(Debug, Default, Clone)]
pub struct Utf8Stream {
    pending: Vec<u8>,
}

impl Utf8Stream {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes and returns all text that is whole now; bytes that can never be UTF-8 become U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(whole) => {
                    text.push_str(whole);
                    self.pending.clear();
                    return text;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.pending[..valid]));
                    let Some(wrong) = error.error_len() else {
                        self.pending.drain(..valid);
                        return text;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.pending.drain(..valid + wrong);
                }
            }
        }
    }

    /// Adds one token.
    pub fn push_token(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        self.push(&tokenizer.token_bytes(id))
    }

    /// What is left at the end: an unfinished sequence becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_back_a_cut_character() {
        let mut stream = Utf8Stream::new();
        let bytes = "né👋".as_bytes();
        let pieces: Vec<String> = bytes.iter().map(|byte| stream.push(&[*byte])).collect();
        assert_eq!(pieces, ["n", "", "é", "", "", "", "👋"]);
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn replaces_what_cannot_be_text() {
        let mut stream = Utf8Stream::new();
        assert_eq!(stream.push(&[b'a', 0xff, b'b', 0xe2, 0x82]), "a\u{fffd}b");
        assert_eq!(stream.push(b"c"), "\u{fffd}c");
        assert_eq!(stream.push(&[0xf0, 0x9f]), "");
        assert_eq!(stream.finish(), "\u{fffd}");
    }
}
