//! Host memory that weights live in: read-only file mappings and aligned, zeroed buffers.
//!
//! Both are plain bytes; typed views are made by the callers with `bytemuck`. Nothing here knows of tensors.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::{Mmap, MmapMut};

use crate::heap;
use crate::pool::Pool;
use crate::shared::SharedMut;

/// A whole file, mapped read-only and private.
///
/// The bytes are the file's own pages: they cost no heap and are shared between processes. Truncating the file
/// while it is mapped ends the process with a bus error; checkpoints are not edited in place.
#[derive(Debug)]
pub struct MappedFile {
    /// `None` for an empty file, which cannot be mapped.
    map: Option<Mmap>,
}

impl MappedFile {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "is a directory, expected a file"));
        }
        if metadata.len() == 0 {
            return Ok(Self { map: None });
        }
        // SAFETY: the mapping is private and read-only, and lives as long as `self`. Another process may still
        // change the file; weights are plain integers and floats, for which every bit pattern is valid.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self { map: Some(map) })
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    pub fn len(&self) -> usize {
        self.as_bytes().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the whole pages inside `range` out of this process's memory. They come back from the file, or from the
    /// system's cache of it, when they are read again. Does nothing where the system cannot.
    pub fn release(&self, range: std::ops::Range<usize>) {
        #[cfg(target_os = "linux")]
        if let Some(map) = &self.map {
            let page = rustix::param::page_size();
            let (start, end) = (range.start.next_multiple_of(page), range.end.min(map.len()) / page * page);
            if start < end {
                // SAFETY: the mapping is read-only and of a file: dropped pages are read from it again, with the
                // bytes that they had. A refusal costs only memory.
                let _ = unsafe {
                    map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start)
                };
            }
        }
    }
}

/// Not enough memory for a buffer.
#[derive(Debug, thiserror::Error)]
#[error("cannot allocate {bytes} bytes of host memory: {source}")]
pub struct AllocError {
    pub bytes: usize,
    pub source: io::Error,
}

/// An owned, zeroed buffer that starts on a page, hence aligned to 64 bytes and more.
///
/// Pages are taken from the system on first write, so that filling in parallel also places them in parallel. They
/// belong to the program as its heap does, and are counted there.
#[derive(Debug)]
pub struct AlignedBytes {
    map: MmapMut,
    len: usize,
}

impl AlignedBytes {
    pub fn zeroed(len: usize) -> Result<Self, AllocError> {
        let map = MmapMut::map_anon(len.max(1)).map_err(|source| AllocError { bytes: len, source })?;
        // Huge pages save TLB misses when weights are streamed. A refusal costs only speed.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        heap::add(len);
        Ok(Self { map, len })
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.map[..self.len]
    }

    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map[..self.len]
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Calls `fill(i, chunk)` for the i-th chunk of `chunk_len` bytes (the last may be shorter), on all threads.
    ///
    /// Chunks are claimed in order by whoever is free, so that on a machine with several memory nodes the pages of
    /// neighbouring chunks lie on different nodes. Kernels claim their tasks in the same way: reads go to all nodes
    /// alike, some of them far.
    pub fn fill_chunks(&mut self, chunk_len: usize, fill: impl Fn(usize, &mut [u8]) + Sync) {
        let (len, chunk_len) = (self.len, chunk_len.max(1));
        let bytes = SharedMut::new(self.as_bytes_mut());
        Pool::shared().run(len.div_ceil(chunk_len), &|i| {
            // SAFETY: chunks of different tasks do not overlap.
            let chunk = unsafe { bytes.slice(i * chunk_len..((i + 1) * chunk_len).min(len)) };
            fill(i, chunk);
        });
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        heap::sub(self.len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_has_the_bytes_of_the_file() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let map = MappedFile::open(&path).unwrap();
        assert_eq!(map.as_bytes(), std::fs::read(&path).unwrap());
        map.release(0..usize::MAX);
        assert_eq!(map.as_bytes(), std::fs::read(&path).unwrap());
        assert!(MappedFile::open(Path::new(env!("CARGO_MANIFEST_DIR"))).is_err());
    }

    #[test]
    fn buffers_are_aligned_zeroed_and_fillable_in_chunks() {
        for len in [0, 1, 63, 4096, 100_001] {
            let mut buffer = AlignedBytes::zeroed(len).unwrap();
            assert_eq!(buffer.as_bytes().as_ptr() as usize % 64, 0);
            assert!(buffer.as_bytes().iter().all(|&b| b == 0) && buffer.len() == len);
            buffer.fill_chunks(1000, |i, chunk| chunk.fill(i as u8 + 1));
            assert!(buffer.as_bytes().iter().enumerate().all(|(at, &b)| usize::from(b) == at / 1000 + 1));
        }
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        assert!(AlignedBytes::zeroed(usize::MAX / 2).is_err());
    }
}
