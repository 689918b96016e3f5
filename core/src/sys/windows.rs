//! Windows: the exclusive handle is the lock.
