//! Where descriptors can't be passed on: nobody comes before or after.

use std::convert::Infallible;

/// There is none.
pub(crate) struct Predecessor(Infallible);

impl Predecessor {
    pub(crate) async fn dismiss(&self) {
        match self.0 {}
    }

    pub(crate) async fn gone(&mut self) {
        match self.0 {}
    }
}

/// There is none.
pub(crate) struct Successor(Infallible);

impl Successor {
    pub(crate) async fn fate(&mut self) {
        match self.0 {}
    }
}
