//! What an answer says of the tokens it cost, found in its end as it passes by.
//!
//! Apart from the relay, which passes bytes on and must not know what they mean.

use serde::Deserialize;

/// As much of an answer's end as is kept: what comes behind the usage is a few hundred bytes.
const KEPT: usize = 2048;

/// Tokens read and made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    pub(crate) input: u64,
    pub(crate) output: u64,
}

/// The end of an answer, as far as it has come.
#[derive(Default)]
pub(crate) struct Tail(Vec<u8>);

impl Tail {
    pub(crate) fn push(&mut self, data: &[u8]) {
        let kept = &data[data.len().saturating_sub(KEPT)..];
        // Twice the room, so that not every piece moves what is there.
        if self.0.len() + kept.len() > 2 * KEPT {
            let old = self.0.len().saturating_sub(KEPT.saturating_sub(kept.len()));
            self.0.drain(..old);
        }
        self.0.extend_from_slice(kept);
    }

    /// Of all it says, the last: servers that say it with every piece count on.
    pub(crate) fn usage(&self) -> Option<Usage> {
        openai(&self.0).or_else(|| ollama(&self.0))
    }
}

/// OpenAI's names, in the old API and in the new one.
#[derive(Deserialize)]
struct Counts {
    #[serde(alias = "input_tokens")]
    prompt_tokens: Option<u64>,
    #[serde(alias = "output_tokens")]
    completion_tokens: Option<u64>,
}

fn openai(text: &[u8]) -> Option<Usage> {
    const NAME: &[u8] = b"\"usage\"";
    let mut end = text.len();
    loop {
        let at = rfind(&text[..end], NAME)?;
        let after = text[at + NAME.len()..].trim_ascii_start();
        if let Some(value) = after.strip_prefix(b":")
            && let Some(Ok(counts)) = serde_json::Deserializer::from_slice(value)
                .into_iter::<Counts>()
                .next()
        {
            return Some(Usage {
                input: counts.prompt_tokens.unwrap_or(0),
                output: counts.completion_tokens.unwrap_or(0),
            });
        }
        // `"usage":null`, or something that a model wrote.
        end = at;
    }
}

/// The last line of an answer of Ollama's own API.
fn ollama(text: &[u8]) -> Option<Usage> {
    #[derive(Deserialize)]
    struct Last {
        #[serde(default)]
        prompt_eval_count: u64,
        eval_count: u64,
    }
    let last = text.trim_ascii_end().rsplit(|&b| b == b'\n').next()?;
    let last: Last = serde_json::from_slice(last).ok()?;
    Some(Usage {
        input: last.prompt_eval_count,
        output: last.eval_count,
    })
}

fn rfind(text: &[u8], word: &[u8]) -> Option<usize> {
    memchr::memmem::rfind(text, word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pieces: &[&str]) -> Option<(u64, u64)> {
        let mut tail = Tail::default();
        pieces.iter().for_each(|piece| tail.push(piece.as_bytes()));
        tail.usage().map(|usage| (usage.input, usage.output))
    }

    #[test]
    fn it_is_found_wherever_servers_put_it() {
        let chat = r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":9,"prompt_tokens_details":{"cached_tokens":3}},"timings":{"a":1}}"#;
        assert_eq!(of(&[chat]), Some((7, 9)));
        assert_eq!(of(&[&chat[..40], &chat[40..]]), Some((7, 9)));
        let responses = r#"{"output":[],"usage": {"input_tokens":1,"output_tokens":2}}"#;
        assert_eq!(of(&[responses]), Some((1, 2)));
        let embeddings = r#"{"data":[],"usage":{"prompt_tokens":5,"total_tokens":5}}"#;
        assert_eq!(of(&[embeddings]), Some((5, 0)));
        let stream = [
            "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"usage\\\":{\"}}],\"usage\":null}\n\n",
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\n",
            "data: [DONE]\n\n",
        ];
        assert_eq!(of(&stream), Some((3, 4)));
        assert_eq!(of(&stream[..1]), None);
        let ollama =
            "{\"message\":{}}\n{\"done\":true,\"prompt_eval_count\":11,\"eval_count\":12}\n";
        assert_eq!(of(&[ollama]), Some((11, 12)));
        assert_eq!(of(&["{\"error\":{}}"]), None);
    }

    #[test]
    fn of_a_long_answer_the_end_is_kept() {
        let end = r#"x"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#;
        let long = "y".repeat(10_000);
        assert_eq!(of(&[&long, end]), Some((1, 2)));
        assert_eq!(of(&[&(long.clone() + end)]), Some((1, 2)));
        let mut tail = Tail::default();
        for byte in long.bytes().chain(end.bytes()) {
            tail.push(&[byte]);
            assert!(tail.0.len() <= 2 * KEPT);
        }
        assert_eq!(
            tail.usage(),
            Some(Usage {
                input: 1,
                output: 2
            })
        );
    }
}
