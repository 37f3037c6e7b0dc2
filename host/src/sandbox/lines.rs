//! The source files and lines of a component's code, from its debugging information.
//!
//! Only `host try` reads this information, because its component is the user's own. A host runs
//! untrusted components, and reads their code only in the process that compiles them.

use std::collections::HashMap;
use std::ops::Range;

use addr2line::Context;
use addr2line::gimli::{Dwarf, EndianSlice, LittleEndian, SectionId};
use wasmparser::{Encoding, Parser, Payload};

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// The source lines of the code in a component's core modules.
pub struct Lines<'a>(Vec<Module<'a>>);

/// A core module with debugging information.
struct Module<'a> {
    /// The range of the module's code, in bytes from the start of the component.
    code: Range<usize>,
    context: Context<Bytes<'a>>,
}

/// A component or core module that is being read.
#[derive(Default)]
struct Open<'a> {
    code: Option<Range<usize>>,
    /// The sections with debugging information, by name.
    sections: HashMap<&'a str, &'a [u8]>,
}

impl<'a> Lines<'a> {
    /// Reads the debugging information of a component. What can't be read is left out.
    pub fn of(component: &'a [u8]) -> Self {
        let mut modules = Vec::new();
        // The components and modules that have begun and not ended.
        let mut open: Vec<Open<'a>> = Vec::new();
        for payload in Parser::new(0).parse_all(component) {
            let Ok(payload) = payload else { break };
            match payload {
                Payload::Version { encoding: Encoding::Module | Encoding::Component, .. } => {
                    open.push(Open::default());
                }
                Payload::CodeSectionStart { range, .. } => {
                    if let Some(module) = open.last_mut() {
                        module.code = Some(range);
                    }
                }
                Payload::CustomSection(section) if section.name().starts_with(".debug_") => {
                    if let Some(module) = open.last_mut() {
                        module.sections.insert(section.name(), section.data());
                    }
                }
                Payload::End(_) => {
                    if let Some(Open { code: Some(code), sections }) = open.pop()
                        && let Some(context) = context(&sections)
                    {
                        modules.push(Module { code, context });
                    }
                }
                _ => {}
            }
        }
        Self(modules)
    }

    /// The file and the line of the code at this offset in the component.
    pub(super) fn at(&self, offset: usize) -> Option<String> {
        let module = self.0.iter().find(|module| module.code.contains(&offset))?;
        // The frame of a call has the offset of the next instruction.
        let address = (offset - module.code.start).saturating_sub(1) as u64;
        let location = module.context.find_location(address).ok()??;
        Some(match (location.file?, location.line) {
            (file, Some(line)) => format!("{}:{line}", short(file)),
            (file, None) => short(file).to_owned(),
        })
    }
}

fn context<'a>(sections: &HashMap<&str, &'a [u8]>) -> Option<Context<Bytes<'a>>> {
    let section = |id: SectionId| {
        let bytes = sections.get(id.name()).copied().unwrap_or_default();
        Ok::<_, addr2line::gimli::Error>(EndianSlice::new(bytes, LittleEndian))
    };
    let dwarf = Dwarf::load(section).ok().filter(|_| sections.contains_key(".debug_line"))?;
    Context::from_dwarf(dwarf).ok()
}

/// A path without the directories into which crates are unpacked.
fn short(file: &str) -> &str {
    match file.split_once("/registry/src/") {
        Some((_, rest)) => rest.split_once('/').map_or(rest, |(_, rest)| rest),
        None => file,
    }
}

#[cfg(test)]
mod tests {
    use addr2line::gimli::write::{
        Address, AttributeValue, DwarfUnit, EndianVec, LineProgram, LineString, Sections,
    };
    use addr2line::gimli::{self, Format, LineEncoding};

    use super::*;

    /// A component with one core module, in which bytes 2 to 5 of the code are line 7 of
    /// `src/lib.rs`; and the offset of the code.
    fn component() -> (Vec<u8>, usize) {
        let encoding = gimli::Encoding { format: Format::Dwarf32, version: 4, address_size: 4 };
        let mut unit = DwarfUnit::new(encoding);
        let name = LineString::String(b"src/lib.rs".to_vec());
        let dir = LineString::String(Vec::new());
        let mut lines =
            LineProgram::new(encoding, LineEncoding::default(), dir, None, name.clone(), None);
        let dir = lines.default_directory();
        let file = lines.add_file(name, dir, None);
        lines.begin_sequence(Some(Address::Constant(0)));
        lines.row().file = file;
        lines.row().line = 7;
        lines.row().address_offset = 2;
        lines.generate_row();
        lines.end_sequence(5);
        unit.unit.line_program = lines;
        let root = unit.unit.get_mut(unit.unit.root());
        root.set(gimli::DW_AT_low_pc, AttributeValue::Address(Address::Constant(0)));
        root.set(gimli::DW_AT_high_pc, AttributeValue::Udata(5));
        let mut sections = Sections::new(EndianVec::new(LittleEndian));
        unit.write(&mut sections).unwrap();

        let section = |id: u8, content: &[u8]| {
            let len = u32::try_from(content.len()).unwrap();
            // Five bytes of LEB128 for any length.
            let len = (0..5).map(|n| (len >> (7 * n)) as u8 & 0x7f | if n < 4 { 0x80 } else { 0 });
            std::iter::once(id).chain(len).chain(content.iter().copied()).collect::<Vec<u8>>()
        };
        let mut module = b"\0asm\x01\0\0\0".to_vec();
        module.extend(section(1, &[1, 0x60, 0, 0]));
        module.extend(section(3, &[1, 0]));
        let code = module.len() + 6;
        module.extend(section(10, &[1, 4, 0, 1, 1, 0x0b]));
        sections
            .for_each(|id, data| {
                let mut content = vec![u8::try_from(id.name().len()).unwrap()];
                content.extend_from_slice(id.name().as_bytes());
                content.extend_from_slice(data.slice());
                module.extend(section(0, &content));
                Ok::<_, gimli::write::Error>(())
            })
            .unwrap();
        let mut component = b"\0asm\x0d\0\x01\0".to_vec();
        let code = component.len() + 6 + code;
        component.extend(section(1, &module));
        (component, code)
    }

    #[test]
    fn code_of_a_module_in_a_component_has_its_line() {
        let (component, code) = component();
        let lines = Lines::of(&component);
        assert_eq!(lines.at(code + 4).as_deref(), Some("src/lib.rs:7"));
        assert_eq!(lines.at(code + 100), None);
        assert_eq!(lines.at(0), None);
    }

    #[test]
    fn what_can_not_be_read_has_no_lines() {
        let (component, code) = component();
        for len in 0..component.len() {
            let _ = Lines::of(&component[..len]).at(code + 4);
        }
        assert_eq!(Lines::of(b"nonsense").at(0), None);
    }
}
