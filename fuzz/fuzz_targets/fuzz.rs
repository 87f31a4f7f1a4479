//! One program for all targets, so that they are instrumented and linked once: `HOLDFAST_FUZZ_TARGET` names the one to
//! run, the arguments are libFuzzer's.
#![no_main]

use fuzz_targets::Target;
use std::sync::LazyLock;

static TARGET: LazyLock<&'static Target> = LazyLock::new(|| {
    let name = std::env::var("HOLDFAST_FUZZ_TARGET").expect("HOLDFAST_FUZZ_TARGET names a target");
    fuzz_targets::target(&name).expect("HOLDFAST_FUZZ_TARGET names a target that there is")
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (TARGET.run)(bytes));
