//! How many tokens a chunk brought, from what the server says of it.
//!
//! Nothing is guessed: where the server keeps no count, the answer is `None`, whatever the text's length.

/// Follows the counts of one stream.
#[derive(Debug)]
pub(super) struct TokenCounter {
    /// Tokens of all chunks with text so far; `None` once a chunk had no count of its own.
    counted: Option<u32>,
    /// Ids, and entries of logprobs, of chunks without text: half a character, or a control token. The next
    /// text shows them, as it does in a running count.
    held_ids: u32,
    held_logprobs: u32,
}

impl Default for TokenCounter {
    fn default() -> Self {
        Self { counted: Some(0), held_ids: 0, held_logprobs: 0 }
    }
}

impl TokenCounter {
    /// A chunk without text; `running` is the server's count of output tokens so far.
    pub(super) fn empty(&mut self, running: Option<u32>, ids: u32, logprobs: u32) {
        self.hold(ids, logprobs);
        // What was uncounted is behind: later chunks are told by their difference to this.
        self.counted = self.counted.or(running);
    }

    /// A chunk with text: its tokens, from the running count, else from token ids, else from logprobs.
    pub(super) fn text(&mut self, running: Option<u32>, ids: u32, logprobs: u32) -> Option<u32> {
        self.hold(ids, logprobs);
        let ids = Some(std::mem::take(&mut self.held_ids)).filter(|n| *n > 0);
        let logprobs = Some(std::mem::take(&mut self.held_logprobs)).filter(|n| *n > 0);
        // A count that stands still says nothing of this chunk; one after uncounted chunks is of them, too.
        let grown =
            running.zip(self.counted).and_then(|(now, before)| now.checked_sub(before)).filter(|n| *n > 0);
        let count = grown.or(ids).or(logprobs);
        self.counted = match (self.counted, count) {
            (Some(before), Some(count)) => Some(before.saturating_add(count)),
            _ => running,
        };
        count
    }

    fn hold(&mut self, ids: u32, logprobs: u32) {
        self.held_ids = self.held_ids.saturating_add(ids);
        self.held_logprobs = self.held_logprobs.saturating_add(logprobs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Chunk = (bool, Option<u32>, u32, u32);

    /// Chunks as (has text, running count, ids, logprobs); gives the counts of those with text.
    fn counts(chunks: &[Chunk]) -> Vec<Option<u32>> {
        let mut counter = TokenCounter::default();
        let mut counts = Vec::new();
        for &(text, running, ids, logprobs) in chunks {
            if text {
                counts.push(counter.text(running, ids, logprobs));
            } else {
                counter.empty(running, ids, logprobs);
            }
        }
        counts
    }

    #[test]
    fn running_count_wins_over_ids_and_ids_over_logprobs() {
        assert_eq!(counts(&[(true, Some(3), 2, 1), (true, Some(4), 2, 1)]), [Some(3), Some(1)]);
        assert_eq!(counts(&[(true, None, 2, 1), (true, None, 0, 4)]), [Some(2), Some(4)]);
        assert_eq!(counts(&[(true, None, 0, 0)]), [None]);
    }

    #[test]
    fn tokens_without_text_are_shown_by_the_next_text() {
        assert_eq!(
            counts(&[(false, Some(0), 0, 0), (false, Some(2), 2, 2), (true, Some(3), 1, 1)]),
            [Some(3)]
        );
        assert_eq!(counts(&[(false, None, 1, 0), (false, None, 1, 0), (true, None, 1, 0)]), [Some(3)]);
        assert_eq!(
            counts(&[(false, None, 0, 2), (true, None, 0, 1), (true, None, 0, 1)]),
            [Some(3), Some(1)]
        );
    }

    #[test]
    fn total_on_the_last_chunk_is_not_that_chunks_count() {
        // Three chunks without a count, then the sum of all: the last one's share is unknown.
        assert_eq!(counts(&[(true, None, 0, 0), (true, None, 0, 0), (true, Some(64), 0, 0)]), [None; 3]);
        // The others' shares are known, so the rest is the last one's.
        assert_eq!(
            counts(&[(true, None, 2, 0), (true, None, 1, 0), (true, Some(5), 0, 0)]).last(),
            Some(&Some(2))
        );
        // From a known total on, differences are right again.
        assert_eq!(counts(&[(true, None, 0, 0), (true, Some(5), 0, 0), (true, Some(7), 0, 0)])[2], Some(2));
        assert_eq!(counts(&[(true, None, 0, 0), (false, Some(5), 0, 0), (true, Some(7), 0, 0)])[1], Some(2));
    }

    #[test]
    fn running_count_that_stands_still_or_falls_counts_nothing() {
        assert_eq!(counts(&[(true, Some(2), 0, 0), (true, Some(2), 0, 0)]), [Some(2), None]);
        assert_eq!(counts(&[(true, Some(2), 0, 0), (true, Some(1), 1, 0)]), [Some(2), Some(1)]);
        assert_eq!(counts(&[(true, Some(u32::MAX), 0, 0), (true, None, 9, 0)]), [Some(u32::MAX), Some(9)]);
    }
}
