//! See [`fuzz::transmission`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::transmission::run(data));
