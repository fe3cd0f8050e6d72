//! What kernels take of a GPU, read from the ELF file that the compiler made: registers, stack and shared
//! memory.
//!
//! The records of `.nv.info` are not documented by NVIDIA; their numbers are those that cuobjdump prints by
//! name. What cannot be read is left out.

/// `EIATTR_REGCOUNT`, `EIATTR_FRAME_SIZE`: a symbol and a number.
const REGISTERS: u8 = 0x2f;
const FRAME: u8 = 0x11;
/// `EIFMT_SVAL`: a record with a length of its own; the others have two bytes.
const SIZED: u8 = 4;
/// Followed by the kernel's name. From `sm_90` on 1,024 bytes of it are the toolchain's own.
const SHARED: &str = ".nv.shared.";
const SYMBOL_BYTES: usize = 24;
const SECTION_BYTES: usize = 64;

/// One kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kernel {
    pub(super) name: String,
    pub(super) registers: u32,
    /// Per thread in device memory: arrays and what did not fit into registers.
    pub(super) local_bytes: u32,
    /// That the kernel declares itself.
    pub(super) shared_bytes: u64,
}

impl Kernel {
    pub(super) fn line(&self) -> String {
        let Self { name, registers, local_bytes, shared_bytes } = self;
        let local = if *local_bytes > 0 { format!(", LOCAL {local_bytes} bytes") } else { String::new() };
        format!("{name}: {registers} registers, {shared_bytes} bytes shared{local}")
    }
}

struct Section<'a> {
    name: &'a str,
    kind: u32,
    bytes: u64,
    content: &'a [u8],
    link: usize,
}

/// The kernels of a cubin, by name; none of what is no cubin.
pub(super) fn kernels(file: &[u8]) -> Vec<Kernel> {
    read(file).unwrap_or_default()
}

fn read(file: &[u8]) -> Option<Vec<Kernel>> {
    let sections = sections(file)?;
    let symbols = sections.iter().find(|section| section.kind == 2)?;
    let names = sections.get(symbols.link)?.content;
    let symbol = |index: u32| {
        let entry = symbols.content.get(index as usize * SYMBOL_BYTES..)?;
        text(names, number(entry, 0, 4)? as usize)
    };
    let info = sections.iter().find(|section| section.name == ".nv.info")?.content;
    let records = records(info);
    let mut kernels = Vec::new();
    for (_, index, registers) in records.iter().filter(|(which, ..)| *which == REGISTERS) {
        let name = symbol(*index)?;
        let local = records.iter().find(|(which, of, _)| *which == FRAME && of == index);
        let shared = sections.iter().find(|s| s.name.strip_prefix(SHARED) == Some(name));
        kernels.push(Kernel {
            name: name.to_owned(),
            registers: *registers,
            local_bytes: local.map_or(0, |(_, _, bytes)| *bytes),
            shared_bytes: shared.map_or(0, |section| section.bytes),
        });
    }
    kernels.sort_by(|a, b| a.name.cmp(&b.name));
    Some(kernels)
}

/// Records of a symbol and a number: attribute, symbol, number.
fn records(mut info: &[u8]) -> Vec<(u8, u32, u32)> {
    let mut records = Vec::new();
    while let [format, attribute, low, high, rest @ ..] = info {
        let len = if *format == SIZED { usize::from(u16::from_le_bytes([*low, *high])) } else { 0 };
        let Some((content, after)) = rest.split_at_checked(len) else { break };
        if *format == SIZED
            && let (Some(symbol), Some(value)) = (number(content, 0, 4), number(content, 4, 4))
        {
            records.push((*attribute, symbol as u32, value as u32));
        }
        info = after;
    }
    records
}

/// Sections of a 64-bit little-endian ELF file.
fn sections(file: &[u8]) -> Option<Vec<Section<'_>>> {
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let at = number(file, 0x28, 8)? as usize;
    let (count, names) = (number(file, 0x3c, 2)? as usize, number(file, 0x3e, 2)? as usize);
    let header = |i: usize| file.get(at + i * SECTION_BYTES..at + (i + 1) * SECTION_BYTES);
    let place = |header: &[u8]| Some((number(header, 24, 8)? as usize, number(header, 32, 8)? as usize));
    let (start, len) = place(header(names)?)?;
    let names = file.get(start..start.checked_add(len)?)?;
    (0..count)
        .map(|i| {
            let header = header(i)?;
            let kind = number(header, 4, 4)? as u32;
            let (start, len) = place(header)?;
            // Sections of the kind 8 have no bytes in the file.
            let content = if kind == 8 { &[][..] } else { file.get(start..start.checked_add(len)?)? };
            let name = text(names, number(header, 0, 4)? as usize)?;
            let link = number(header, 40, 4)? as usize;
            Some(Section { name, kind, bytes: len as u64, content, link })
        })
        .collect()
}

/// A little-endian number of `len` bytes.
fn number(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let part = bytes.get(at..at.checked_add(len)?)?;
    Some(part.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

/// The text that begins at `at` and ends with a zero.
fn text(bytes: &[u8], at: usize) -> Option<&str> {
    let rest = bytes.get(at..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&rest[..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file of (name, kind, link, content), with the names' section at its end.
    fn elf(sections: &[(&str, u32, u32, Vec<u8>)]) -> Vec<u8> {
        let mut names = vec![0_u8];
        let mut file = vec![0_u8; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let mut headers = vec![0_u8; SECTION_BYTES];
        let all = sections.iter().cloned().chain([(".shstrtab", 3, 0, Vec::new())]);
        for (name, kind, link, mut content) in all {
            let name_at = names.len() as u32;
            names.extend(name.bytes().chain([0]));
            if name == ".shstrtab" {
                content.clone_from(&names);
            }
            let mut header = vec![0_u8; SECTION_BYTES];
            header[..4].copy_from_slice(&name_at.to_le_bytes());
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[24..32].copy_from_slice(&(file.len() as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(content.len() as u64).to_le_bytes());
            header[40..44].copy_from_slice(&link.to_le_bytes());
            headers.extend(header);
            file.extend(content);
        }
        let (at, count) = (file.len() as u64, (headers.len() / SECTION_BYTES) as u16);
        file[0x28..0x30].copy_from_slice(&at.to_le_bytes());
        file[0x3c..0x3e].copy_from_slice(&count.to_le_bytes());
        file[0x3e..0x40].copy_from_slice(&(count - 1).to_le_bytes());
        file.extend(headers);
        file
    }

    fn record(attribute: u8, symbol: u32, value: u32) -> Vec<u8> {
        let mut bytes = vec![SIZED, attribute, 8, 0];
        bytes.extend(symbol.to_le_bytes());
        bytes.extend(value.to_le_bytes());
        bytes
    }

    fn example() -> Vec<u8> {
        let mut symbols = vec![0_u8; 3 * SYMBOL_BYTES];
        symbols[SYMBOL_BYTES] = 1;
        symbols[2 * SYMBOL_BYTES] = 7;
        let info = [
            record(REGISTERS, 1, 168),
            vec![3, 0x1b, 255, 0],
            record(FRAME, 1, 64),
            record(REGISTERS, 2, 40),
            record(FRAME, 2, 0),
        ];
        elf(&[
            (".strtab", 3, 0, b"\0panel\0flash\0".to_vec()),
            (".symtab", 2, 1, symbols),
            (".nv.info", 0x7000_0000, 2, info.concat()),
            (".nv.shared.panel", 8, 0, vec![0; 1024]),
        ])
    }

    #[test]
    fn registers_local_and_shared_memory_are_read() {
        let found = kernels(&example());
        let lines: Vec<String> = found.iter().map(Kernel::line).collect();
        assert_eq!(
            lines,
            [
                "flash: 40 registers, 0 bytes shared",
                "panel: 168 registers, 1024 bytes shared, LOCAL 64 bytes"
            ]
        );
    }

    #[test]
    fn what_is_no_cubin_has_no_kernels() {
        assert_eq!(kernels(b".version 8.4\n"), []);
        let whole = example();
        for len in 0..whole.len() {
            // Cut anywhere: nothing, and no panic.
            assert_eq!(kernels(&whole[..len]), [], "{len}");
        }
    }
}
