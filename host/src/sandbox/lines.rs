//! The files and lines of a component's code, from the debugging information in it.
//!
//! Only `host try` reads it, because the component is then the user's own. A host runs components of
//! strangers, and reads none of their code outside the process that compiles it.

use std::collections::HashMap;
use std::ops::Range;

use addr2line::Context;
use addr2line::gimli::{Dwarf, EndianSlice, LittleEndian, SectionId};
use wasmparser::{Encoding, Parser, Payload};

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// Where the code of a component's core modules comes from.
pub struct Lines<'a>(Vec<Module<'a>>);

/// A core module with debugging information.
struct Module<'a> {
    /// Its code, in bytes from the start of the component.
    code: Range<usize>,
    context: Context<Bytes<'a>>,
}

impl<'a> Lines<'a> {
    /// Reads the debugging information of a component. What can't be read is left out.
    pub fn of(component: &'a [u8]) -> Self {
        let mut modules = Vec::new();
        // The code and the sections of each module that has begun and not ended.
        let mut open: Vec<(Option<Range<usize>>, HashMap<&str, &'a [u8]>)> = Vec::new();
        for payload in Parser::new(0).parse_all(component) {
            let Ok(payload) = payload else { break };
            match payload {
                Payload::Version { encoding: Encoding::Module | Encoding::Component, .. } => {
                    open.push((None, HashMap::new()));
                }
                Payload::CodeSectionStart { range, .. } => {
                    if let Some((code, _)) = open.last_mut() {
                        *code = Some(range);
                    }
                }
                Payload::CustomSection(section) if section.name().starts_with(".debug_") => {
                    if let Some((_, sections)) = open.last_mut() {
                        sections.insert(section.name(), section.data());
                    }
                }
                Payload::End(_) => {
                    if let Some((Some(code), sections)) = open.pop()
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
        // A call's frame has the offset after the call.
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

/// A path without the directories in which crates are unpacked.
fn short(file: &str) -> &str {
    match file.split_once("/registry/src/") {
        Some((_, rest)) => rest.split_once('/').map_or(rest, |(_, rest)| rest),
        None => file,
    }
}
