#![doc = include_str!("manual/conformance.md")]
