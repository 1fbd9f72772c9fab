#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| p1_fuzz::check("manifest", data));
