//! bench-runner
