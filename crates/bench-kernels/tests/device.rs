//! A device opened through the driver's functions, with the stub that runs kernels on the CPU as the driver.
//!
//! The stub is one per process: tests take turns. Nothing is shown about time.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use bench_kernels::cuda::device::{Buffer, Category, Device, Files, Usage};
use bench_kernels::cuda::vectors::{self, AddArgs};
use bench_kernels::cuda::{CudaVersion, DeviceError, Gpu, GpuError, Memory};
use bytemuck::Zeroable;
use cuda_stub::{Device as Gpus, Failure, Loaded, Script, code};

/// The stub with a script, for one test at a time.
struct Stub {
    loaded: Loaded,
    _turn: MutexGuard<'static, ()>,
}

impl Stub {
    fn new(script: &Script) -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Self { loaded: cuda_stub::preload(script).unwrap(), _turn: turn }
    }

    #[allow(clippy::unused_self)] // nothing is opened without a stub
    fn try_open(&self, ordinal: usize) -> Result<Device, DeviceError> {
        let driver = cuda_stub::library().unwrap();
        Device::open_with(ordinal, Files { driver: Some(&driver), images: Some(images()) })
    }

    fn open(&self) -> Device {
        self.try_open(0).unwrap()
    }
}

/// A folder of images whose content the stub does not look at: one for Ampere, one for Hopper.
fn images() -> &'static std::path::Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("ossbench-images-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for architecture in ["sm_80", "sm_90a"] {
            std::fs::write(folder.join(format!("all.{architecture}.cubin")), "stub").unwrap();
        }
        folder
    })
}

fn failing(symbol: &str, after: u64, code: u32) -> Script {
    let failure = Failure { symbol: symbol.into(), after, times: Some(1), code, sticky: false };
    Script { failures: vec![failure], ..Script::default() }
}

fn of_devices(devices: Vec<Gpus>) -> Script {
    Script { devices, ..Script::default() }
}

#[test]
fn facts_are_those_of_the_driver() {
    let stub = Stub::new(&Script { driver_version: 12_080, ..Script::default() });
    let device = stub.open();
    let info = device.info();
    assert_eq!(info.title(), "NVIDIA H100 80GB HBM3 (emulated), sm_90");
    assert_eq!(info.capability, (9, 0));
    assert_eq!(info.driver, CudaVersion { major: 12, minor: 8 });
    assert_eq!((info.multiprocessors, info.max_shared_bytes), (132, 227 * 1024));
    assert!(info.uuid.starts_with("GPU-656d756c"), "{}", info.uuid);
    let (free, total) = device.memory().unwrap();
    assert!(free <= total && total == info.total_bytes, "{free} of {total}");
    assert!(device.dependent());
    device.set_dependent(false);
    assert!(!device.dependent());
}

#[test]
fn copies_come_back_whole_at_any_size() {
    let stub = Stub::new(&Script::default());
    let device = stub.open();
    // Within a small slot, one byte over it, over a large one, and over both.
    for bytes in [0, 1, 16 << 10, (16 << 10) + 1, (32 << 20) + 7, (97 << 20) + 3] {
        let sent: Vec<u8> = (0..bytes).map(|i| (i * 7 + i / 251) as u8).collect();
        let buffer = device.buffer(bytes, Category::Weights).unwrap();
        let mut back = vec![1; bytes];
        device.download(buffer.address(), &mut back).unwrap();
        assert!(back.iter().all(|byte| *byte == 0), "{bytes} bytes are not zeros at first");
        device.upload(buffer.address(), &sent).unwrap();
        device.download(buffer.address(), &mut back).unwrap();
        assert!(back == sent, "{bytes} bytes");
        let copy = device.buffer(bytes, Category::Workspace).unwrap();
        device.copy(copy.address(), buffer.address(), bytes).unwrap();
        back.fill(0);
        device.download(copy.address(), &mut back).unwrap();
        assert!(back == sent, "{bytes} bytes on the device");
    }
    // Many small copies go round the ring.
    let buffer = device.buffer(4 * 200, Category::Workspace).unwrap();
    for i in 0..200_u32 {
        device.upload(buffer.at(4 * i as usize, 4).unwrap(), &i.to_le_bytes()).unwrap();
    }
    let mut all = vec![0_u32; 200];
    device.download(buffer.address(), bytemuck::cast_slice_mut(&mut all)).unwrap();
    assert!(all.iter().copied().eq(0..200));
    assert!(matches!(buffer.at(4 * 200 - 3, 4), Err(DeviceError::Outside { .. })));
}

#[test]
fn page_locked_memory_is_there_behind_an_event() {
    let stub = Stub::new(&Script::default());
    let device = stub.open();
    let buffer = device.buffer(8, Category::Activations).unwrap();
    device.upload(buffer.address(), &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    let mut pinned = device.pinned(8).unwrap();
    pinned.write(0, &[9; 8]).unwrap();
    let before = device.record().unwrap();
    device.download_to(&pinned, 2, buffer.at(4, 4).unwrap(), 4).unwrap();
    let event = device.record().unwrap();
    event.synchronize().unwrap();
    assert!(event.is_reached().unwrap());
    assert!(before.elapsed_ms(&event).unwrap() >= 0.0);
    let mut back = [0; 8];
    pinned.read(0, &mut back).unwrap();
    assert_eq!(back, [9, 9, 5, 6, 7, 8, 9, 9]);
    assert!(device.download_to(&pinned, 6, buffer.address(), 4).is_err());
    assert!(pinned.read(1, &mut back).is_err());
}

#[test]
fn kernels_agree_with_plain_arithmetic_through_the_driver() {
    let stub = Stub::new(&Script { seed: 5, ..Script::default() });
    let device = stub.open();
    for row in vectors::check(&device, 11, 2).unwrap() {
        assert!(row.passed(), "{row:?}");
    }
    assert_eq!(device.total_usage().live_bytes, 0, "checks give back what they took");
    assert!(stub.loaded.report().unwrap().kernels.len() > 5);
}

/// `x += y`, four values.
fn addition(x: u64, y: u64) -> AddArgs {
    AddArgs { x, y, out: x, count: 4, ..AddArgs::zeroed() }
}

#[test]
fn a_graph_runs_when_it_is_launched_and_each_time() {
    let stub = Stub::new(&Script::default());
    let device = stub.open();
    let x = Memory::of(&device, &[1.0_f32, 2.0, 3.0, 4.0]).unwrap();
    let y = Memory::of(&device, &[1.0_f32, 1.0, 1.0, 1.0]).unwrap();
    let mut refused = Vec::new();
    let graph = device.capture(|| {
        vectors::add(&device, &addition(x.address(), y.address())).unwrap();
        refused.push(device.read(x.address(), &mut [0; 4]).unwrap_err());
        refused.push(device.write(x.address(), &[0; 4]).unwrap_err());
        refused.push(device.alloc(16).unwrap_err());
        refused.push(device.synchronize().unwrap_err().into());
        // Another thread's work is not part of it.
        let at = y.address();
        std::thread::scope(|scope| {
            let own = scope.spawn(|| device.write(at, bytemuck::bytes_of(&2.0_f32)));
            own.join().unwrap().unwrap();
        });
        vectors::add(&device, &addition(x.address(), y.address())).unwrap();
    });
    let graph = graph.unwrap();
    assert_eq!(graph.nodes(), 2);
    for error in &refused {
        let expected = matches!(error, GpuError::Device(DeviceError::InCapture { .. }));
        assert!(expected, "{error}");
    }
    assert_eq!(x.values::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    for round in 1..=2_u8 {
        graph.launch().unwrap();
        let by = f32::from(2 * round);
        assert_eq!(x.values::<f32>().unwrap(), [1.0 + 2.0 * by, 2.0 + by, 3.0 + by, 4.0 + by]);
    }
    // What follows goes into the queue again.
    vectors::add(&device, &addition(x.address(), y.address())).unwrap();
    assert_eq!(x.values::<f32>().unwrap()[3], 9.0);
    assert_eq!(stub.loaded.report().unwrap().kernels["add"], 5);
}

#[test]
fn a_capture_ends_also_when_its_work_panics() {
    let stub = Stub::new(&Script::default());
    let device = stub.open();
    let again = device.clone();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        again.capture(|| panic!("in the middle")).map(drop)
    }));
    assert!(panicked.is_err());
    device.synchronize().unwrap();
    assert_eq!(device.capture(|| ()).unwrap().nodes(), 0);
}

#[test]
fn memory_is_counted_by_kind_and_given_back() {
    let stub = Stub::new(&Script::default());
    let device = stub.open();
    let weights = device.buffer(1000, Category::Weights).unwrap();
    let cache = device.buffer(500, Category::KvCache).unwrap();
    assert_eq!((weights.bytes(), cache.category()), (1000, Category::KvCache));
    let address = device.alloc(64).unwrap();
    assert_eq!(device.usage(Category::Workspace).live_bytes, 64);
    device.free(address);
    drop(weights);
    assert_eq!(device.usage(Category::Weights), Usage { live_bytes: 0, peak_bytes: 1000 });
    assert_eq!(device.total_usage(), Usage { live_bytes: 500, peak_bytes: 1564 });
    device.reset_peaks();
    assert_eq!(device.total_usage(), Usage { live_bytes: 500, peak_bytes: 500 });
    // Buffers outlive the handle that made them, on any thread.
    drop(device);
    std::thread::spawn(move || drop(cache)).join().unwrap();
    let report = stub.loaded.report().unwrap();
    assert_eq!(report.live_bytes, 0);
    assert_eq!(report.calls["cuDevicePrimaryCtxRelease_v2"], 1);
}

#[test]
fn what_cannot_be_opened_says_why() {
    let error = |script: &Script, ordinal| Stub::new(script).try_open(ordinal).unwrap_err();
    let found = CudaVersion { major: 12, minor: 2 };
    let old = Script { driver_version: 12_020, ..Script::default() };
    assert_eq!(error(&old, 0), DeviceError::DriverTooOld { found });
    let none = error(&of_devices(Vec::new()), 0);
    assert!(matches!(none, DeviceError::NoDevice { .. }), "{none}");
    let two = ["A", "B"].map(|name| Gpus { name: name.into(), ..Gpus::default() });
    let devices = vec!["cuda:0 (A)".to_owned(), "cuda:1 (B)".to_owned()];
    assert_eq!(error(&of_devices(two.into()), 2), DeviceError::Ordinal { ordinal: 2, devices });
    let turing = Gpus { name: "T".into(), compute_capability: [7, 5], ..Gpus::default() };
    let device = "cuda:0 (T)".to_owned();
    let expected = DeviceError::Capability { device, capability: (7, 5) };
    assert_eq!(error(&of_devices(vec![turing]), 0), expected);
    let busy = error(&failing("cuDevicePrimaryCtxRetain", 0, code::DEVICE_UNAVAILABLE), 0);
    assert!(matches!(busy, DeviceError::InUse { .. }), "{busy}");
    let newer = Gpus { compute_capability: [12, 0], ..Gpus::default() };
    let image = error(&of_devices(vec![newer]), 0).to_string();
    assert!(image.contains("it holds sm_80, sm_90a"), "{image}");
    let refused = error(&failing("cuModuleLoadDataEx", 0, code::UNSUPPORTED_PTX_VERSION), 0).to_string();
    assert!(refused.contains("all.sm_90a.cubin") && refused.contains("update the driver"), "{refused}");
}

#[test]
fn an_ampere_device_gets_its_image_and_no_dependent_launches() {
    let ampere = Gpus { compute_capability: [8, 6], max_shared_bytes: 99 * 1024, ..Gpus::default() };
    let stub = Stub::new(&of_devices(vec![ampere]));
    let device = stub.open();
    device.set_dependent(true);
    assert!(!device.dependent());
    assert_eq!(device.max_shared_bytes(), 99 * 1024);
    let x = Memory::of(&device, &[1.0_f32; 4]).unwrap();
    vectors::add(&device, &addition(x.address(), x.address())).unwrap();
    assert_eq!(x.values::<f32>().unwrap(), [2.0; 4]);
}

#[test]
fn too_little_memory_is_an_error_with_numbers_and_nothing_is_lost() {
    let small = Gpus { memory_bytes: 1 << 20, ..Gpus::default() };
    let stub = Stub::new(&of_devices(vec![small]));
    let device = stub.open();
    let held = device.buffer(600_000, Category::Weights).unwrap();
    let error = device.buffer(600_000, Category::KvCache).unwrap_err();
    let DeviceError::OutOfMemory { what, bytes, free, total, ours, .. } = &error else { panic!("{error}") };
    assert_eq!((*what, *bytes, *total, *ours), ("the KV cache", 600_000, 1 << 20, 600_000));
    assert!(*free < 600_000);
    assert_eq!(device.usage(Category::KvCache), Usage::default());
    drop(held);
    device.buffer(600_000, Category::KvCache).unwrap();
}

#[test]
fn a_pool_asks_the_driver_once_and_gives_back_what_nobody_wants() {
    let stub = Stub::new(&of_devices(vec![Gpus { memory_bytes: 1 << 20, ..Gpus::default() }]));
    let device = stub.open();
    let pool = device.pool();
    let calls = |name: &str| stub.loaded.report().unwrap().calls.get(name).copied().unwrap_or(0);
    let batch = |sizes: &[usize]| {
        let take = |bytes| device.buffer_of(&pool, bytes, Category::KvCache).unwrap();
        let all: Vec<_> = sizes.iter().map(|bytes| take(*bytes)).collect();
        let mut addresses: Vec<_> = all.iter().map(Buffer::address).collect();
        addresses.sort_unstable();
        assert_eq!(device.usage(Category::KvCache).live_bytes, sizes.iter().sum::<usize>() as u64);
        addresses
    };
    let first = batch(&[300_000, 300_000, 1000]);
    let asked = calls("cuMemAlloc_v2");
    // In use by nobody, but held.
    assert_eq!((device.total_usage().live_bytes, device.kept_bytes()), (0, 601_000));
    let (free, total) = device.memory().unwrap();
    assert_eq!((free, total), (1 << 20, 1 << 20), "what is kept can be had");
    assert_eq!(batch(&[1000, 300_000, 300_000]), first);
    assert_eq!((calls("cuMemAlloc_v2"), calls("cuMemFree_v2")), (asked, 0));
    // What another batch does not want goes when it ends.
    batch(&[300_000]);
    assert_eq!((device.kept_bytes(), calls("cuMemFree_v2")), (300_000, 2));
    // Short of memory: it goes before anything fails, whoever asks.
    let weights = device.buffer(1_000_000, Category::Weights).unwrap();
    assert_eq!((device.kept_bytes(), calls("cuMemFree_v2")), (0, 3));
    assert!(device.buffer_of(&pool, 300_000, Category::KvCache).is_err());
    drop(weights);
    // What is lent when its pool goes is given back by itself.
    let last = device.buffer_of(&pool, 300_000, Category::KvCache).unwrap();
    drop(device.buffer_of(&pool, 5000, Category::KvCache).unwrap());
    assert_eq!(device.kept_bytes(), 5000);
    drop(pool);
    assert_eq!(device.kept_bytes(), 0);
    drop(last);
    assert_eq!(stub.loaded.report().unwrap().live_bytes, 0);
}

#[test]
fn after_a_lost_device_every_call_tells_the_first_error_and_drops_are_quiet() {
    let stub = Stub::new(&failing("kernel:add", 0, code::ILLEGAL_ADDRESS));
    let device = stub.open();
    let x = device.buffer(16, Category::Activations).unwrap();
    vectors::add(&device, &addition(x.address(), x.address())).unwrap();
    let first = device.synchronize().unwrap_err();
    let text = first.to_string();
    assert!(first.is_lost() && text.contains("ILLEGAL_ADDRESS") && text.contains("sanitizer"), "{text}");
    assert_eq!(device.download(x.address(), &mut [0; 4]).unwrap_err(), first);
    assert_eq!(device.buffer(16, Category::Weights).unwrap_err(), first);
    assert_eq!(device.capture(|| ()).map(drop), Err(first));
    assert_eq!(device.usage(Category::Activations).live_bytes, 16);
    drop(x);
    assert_eq!(device.usage(Category::Activations).live_bytes, 0);
}

#[test]
fn launches_that_cannot_be_name_the_kernel() {
    let stub = Stub::new(&Script::default());
    let device = stub.open();
    let launch = |kernel, block, shared, bytes: usize| {
        device.launch(kernel, [1, 1, 1], block, shared, &vec![0; bytes]).unwrap_err().to_string()
    };
    let right = size_of::<AddArgs>();
    for (error, expected) in [
        (launch("no_such_kernel", 32, 0, 0), "kernel no_such_kernel: is in none of the 1 modules"),
        (launch("add", 256, 0, right - 8), "kernel add: argument of 32 bytes, expected 40"),
        (launch("add", 512, 0, right), "512 threads in a block, expected 1 to 256"),
        (launch("add", 256, 1 << 20, right), "1048576 bytes of shared memory"),
    ] {
        assert!(error.contains(expected), "{error}");
    }
    assert!(device.resources("add").unwrap().registers > 0);
    device.synchronize().unwrap();
}

#[test]
fn a_device_is_used_from_many_threads() {
    let stub = Stub::new(&Script::default());
    let device = stub.open();
    std::thread::scope(|scope| {
        for i in 0..4_u32 {
            let device = &device;
            scope.spawn(move || {
                for round in 0..20_u32 {
                    let value = i * 1000 + round;
                    let memory = Memory::of(device, &[value; 5]).unwrap();
                    assert_eq!(memory.values::<u32>().unwrap(), [value; 5]);
                }
            });
        }
    });
    assert_eq!(device.total_usage().live_bytes, 0);
}
