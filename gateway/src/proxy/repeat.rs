//! Which requests may be done twice, should it come to that: a pooled connection that dies under one
//! leaves open whether it was done.

use axum::http::Method;
use axum::http::uri::PathAndQuery;

/// What the last part of a path is called that computes an answer and changes nothing else, by
/// OpenAI's, Anthropic's, Ollama's, llama.cpp's, TGI's or vLLM's API.
const INFERENCE: [&str; 29] = [
    "apply-template",
    "chat",
    "chat_tokenize",
    "classify",
    "completion",
    "completions",
    "count_tokens",
    "detokenize",
    "edits",
    "embed",
    "embedding",
    "embeddings",
    "generate",
    "generate_stream",
    "generations",
    "infill",
    "invocations",
    "messages",
    "moderations",
    "pooling",
    "rerank",
    "reranking",
    "responses",
    "score",
    "speech",
    "tokenize",
    "transcriptions",
    "translations",
    "variations",
];

/// What jobs and files are made under, whatever follows.
const MADE: [&str; 5] = [
    "/v1/batches",
    "/v1/files",
    "/v1/fine_tuning",
    "/v1/threads",
    "/v1/uploads",
];

/// Whether doing it twice does no more than doing it once.
pub(super) fn may_be_repeated(method: &Method, path: &PathAndQuery) -> bool {
    method.is_idempotent() || (*method == Method::POST && is_inference(path.path()))
}

/// Whether what is sent there is computed with, by its path.
pub(super) fn is_inference(path: &str) -> bool {
    let path = path.trim_end_matches('/');
    let last = path.rsplit('/').next().unwrap_or_default();
    INFERENCE.binary_search(&last).is_ok() && !MADE.iter().any(|made| path.starts_with(made))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_something_is_done_once() {
        let may = |method: Method, path| may_be_repeated(&method, &PathAndQuery::from_static(path));
        for path in [
            "/v1/chat/completions",
            "/v1/responses?x=y",
            "/v1/audio/speech",
            "/api/generate",
            "/tokenize/",
        ] {
            assert!(may(Method::POST, path), "{path}");
            assert!(!may(Method::PATCH, path), "{path}");
        }
        for path in [
            "/v1/batches",
            "/v1/fine_tuning/jobs",
            "/v1/files",
            "/v1/threads/t/messages",
            "/api/pull",
            "/v1/load_lora_adapter",
            "/",
        ] {
            assert!(!may(Method::POST, path), "{path}");
            assert!(may(Method::GET, path), "{path}");
        }
    }

    #[test]
    fn the_list_is_in_order() {
        assert!(INFERENCE.is_sorted() && MADE.is_sorted());
    }
}
