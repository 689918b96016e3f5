//! What the gateway answers itself, and where: all else is passed on.

mod health;
mod metrics;
mod models;

use std::sync::Arc;

use axum::routing::get;
use axum::{Router, middleware};

use crate::shared::Shared;
use crate::{admission, proxy};

pub(crate) fn router(shared: &Arc<Shared>) -> Router {
    let mut guarded = Router::new()
        .route("/metrics", get(metrics::handler))
        .route("/v1/models", get(models::list).fallback(proxy::handler))
        .route(
            "/v1/models/{*id}",
            get(models::one).fallback(proxy::handler),
        )
        .fallback(proxy::handler);
    if shared.options.api_key.is_some() {
        let require = middleware::from_fn_with_state(Arc::clone(shared), admission::require_key);
        guarded = guarded.layer(require);
    }
    guarded
        .route("/health", get(health::handler))
        .with_state(Arc::clone(shared))
}
