//! Weights in the layout that kernels stream: packed where they lie if they were made here, else copied panel by
//! panel from the file, whose pages are let go at once. There are never two copies of a model in memory.

use std::sync::{Arc, Mutex, PoisonError};

use bench_kernels::Exec;
use bench_kernels::host::AlignedBytes;
use bench_kernels::packed::{PANEL, PackedFormat, pack_mxfp4_in_place, pack_mxfp4_into, quantize};

use crate::error::Result;
use crate::ops::kernel_error;
use crate::weights::{HostBytes, HostTensor, TensorDtype};

/// Panels that one thread packs at a time: some MiB.
const PANELS: usize = 128;

/// Packs MXFP4 blocks `[experts, rows, cols / 32, 16]` and scales `[experts, rows, cols / 32]`; rows of an expert in
/// multiples of 16.
///
/// # Errors
/// No memory for the copy.
pub(crate) fn mxfp4(
    exec: &Exec,
    blocks: HostTensor,
    scales: HostTensor,
    cols: usize,
) -> Result<(HostTensor, HostTensor)> {
    let (like_blocks, like_scales) = (Like::of(&blocks), Like::of(&scales));
    // Parts of whole panels: bytes of codes and of scales.
    let part = (PANELS * PANEL * cols / 2, PANELS * PANEL * cols / 32);
    let wrong = kernel_error(&like_blocks.name);
    let (codes, scales) = match (blocks.into_bytes(), scales.into_bytes()) {
        (Ok(mut blocks), Ok(mut scales)) => {
            let parts =
                blocks.as_bytes_mut().chunks_mut(part.0).zip(scales.as_bytes_mut().chunks_mut(part.1));
            each(exec, parts, |_, (blocks, scales)| pack_mxfp4_in_place(blocks, scales, cols))
                .map_err(wrong)?;
            (blocks, scales)
        }
        (blocks, scales) => {
            let (from, from_scales) = (Bytes::of(blocks), Bytes::of(scales));
            let mut codes = AlignedBytes::zeroed(from.as_bytes().len())?;
            let mut scales = AlignedBytes::zeroed(from_scales.as_bytes().len())?;
            let parts = codes.as_bytes_mut().chunks_mut(part.0).zip(scales.as_bytes_mut().chunks_mut(part.1));
            each(exec, parts, |i, (codes, scales)| {
                let range = i * part.0..i * part.0 + codes.len();
                let blocks = &from.as_bytes()[range.clone()];
                let row_scales = &from_scales.as_bytes()[i * part.1..][..scales.len()];
                let packed = pack_mxfp4_into(blocks, row_scales, cols, codes, scales);
                from.release(range);
                packed
            })
            .map_err(wrong)?;
            (codes, scales)
        }
    };
    Ok((like_blocks.tensor(codes)?, like_scales.tensor(scales)?))
}

/// Quantizes f32 or bf16 `[rows, cols]`, of a size that can be packed, to codes and scales of `format`.
///
/// # Errors
/// No memory for the copy.
pub(crate) fn quantized(
    exec: &Exec,
    tensor: &HostTensor,
    format: PackedFormat,
) -> Result<(HostTensor, HostTensor)> {
    let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
    let (code_bytes, scale_bytes) = format.bytes(rows, cols);
    let (mut codes, mut scales) = (AlignedBytes::zeroed(code_bytes)?, AlignedBytes::zeroed(scale_bytes)?);
    let (to, to_scales) = (codes.as_bytes_mut(), scales.as_bytes_mut());
    match tensor.dtype {
        TensorDtype::F32 => quantize(exec, format, tensor.as_f32()?, rows, cols, to, to_scales),
        _ => quantize(exec, format, tensor.as_bf16()?, rows, cols, to, to_scales),
    }
    .map_err(kernel_error(&tensor.name))?;
    tensor.release(0..tensor.as_bytes().len());
    in_place_of(tensor, codes, scales)
}

/// Codes and scales as tensors that have the name of the one they were made of.
///
/// # Errors
/// None: bytes are as many as they are.
pub(super) fn in_place_of(
    tensor: &HostTensor,
    codes: AlignedBytes,
    scales: AlignedBytes,
) -> Result<(HostTensor, HostTensor)> {
    Ok((Like::of(tensor).tensor(codes)?, Like::of(tensor).tensor(scales)?))
}

/// A new tensor of bytes in place of another.
struct Like {
    name: Arc<str>,
    origin: Arc<str>,
}

impl Like {
    fn of(tensor: &HostTensor) -> Self {
        Self { name: Arc::clone(&tensor.name), origin: Arc::clone(&tensor.origin) }
    }

    fn tensor(self, bytes: AlignedBytes) -> Result<HostTensor> {
        let end = bytes.len();
        let bytes = HostBytes::Owned { buffer: Arc::new(bytes), start: 0, end };
        HostTensor::new(self.name, self.origin, TensorDtype::U8, vec![end], bytes)
    }
}

/// What is copied from.
enum Bytes {
    Own(AlignedBytes),
    Shared(HostTensor),
}

impl Bytes {
    fn of(bytes: std::result::Result<AlignedBytes, HostTensor>) -> Self {
        bytes.map_or_else(Self::Shared, Self::Own)
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes.as_bytes(),
            Self::Shared(tensor) => tensor.as_bytes(),
        }
    }

    fn release(&self, range: std::ops::Range<usize>) {
        if let Self::Shared(tensor) = self {
            tensor.release(range);
        }
    }
}

/// Calls `work` with the number of each part and the part, on all threads; the first error.
pub(super) fn each<T: Send, E: Send>(
    exec: &Exec,
    parts: impl Iterator<Item = T>,
    work: impl Fn(usize, T) -> std::result::Result<(), E> + Sync,
) -> std::result::Result<(), E> {
    let parts: Vec<Mutex<Option<T>>> = parts.map(|part| Mutex::new(Some(part))).collect();
    let failed = Mutex::new(None);
    let lock = |part: &Mutex<Option<T>>| part.lock().unwrap_or_else(PoisonError::into_inner).take();
    exec.run(parts.len(), |i| {
        if let Some(Err(error)) = lock(&parts[i]).map(|part| work(i, part)) {
            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
