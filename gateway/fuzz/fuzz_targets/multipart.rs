//! A form, in any pieces.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| llmlb_gateway::fuzzing::scan_of_multipart(data));
