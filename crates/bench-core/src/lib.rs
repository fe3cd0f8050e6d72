//! bench-core
