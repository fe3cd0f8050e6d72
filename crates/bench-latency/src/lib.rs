//! bench-latency
