//! The library in this process, found by its name. A process of its own: other copies would have the same
//! name.
#![allow(unsafe_code, clippy::unwrap_used)]

use cuda_stub::{Script, code, preload};
use libloading::os::unix::Library;

#[test]
fn a_preloaded_library_is_found_by_its_name_and_tells_what_it_did() {
    let loaded = preload(&Script { driver_version: 12_080, ..Script::default() }).unwrap();
    // SAFETY: it is loaded already.
    let library = unsafe { Library::new("libcuda.so.1") }.unwrap();
    // SAFETY: the signatures are those of cuda.h.
    let (init, version) = unsafe {
        (
            library.get::<unsafe extern "C" fn(u32) -> u32>("cuInit").unwrap(),
            library.get::<unsafe extern "C" fn(*mut i32) -> u32>("cuDriverGetVersion").unwrap(),
        )
    };
    let mut found = 0;
    // SAFETY: `found` is there to be written.
    unsafe {
        assert_eq!((init(0), version(&raw mut found)), (0, 0));
    }
    assert_eq!(found, 12_080);
    let report = loaded.report().unwrap();
    assert_eq!((report.calls["cuInit"], report.calls["cuDriverGetVersion"]), (1, 1));
    assert!(!report.calls.contains_key("cuMemAlloc_v2") && report.kernels.is_empty());

    loaded.set(&Script { devices: vec![], ..Script::default() }).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { init(0) }, code::NO_DEVICE);
    assert_eq!(loaded.report().unwrap().calls["cuInit"], 1);
}
