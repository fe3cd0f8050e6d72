//! bench-report
