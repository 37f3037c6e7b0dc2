//! The errors of a guest's streams, in words: `wasi:io/error`.
//!
//! The stock words have the host's own stack in them where `RUST_BACKTRACE` is set for it, with
//! paths and addresses. These have what went wrong, and no more.

use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi_io::bindings::wasi::io::error;

use super::State;
use crate::words;

/// The most bytes of an error's words.
const MOST: usize = 1 << 10;

/// Puts these errors in the place of the stock ones.
pub(super) fn shadow(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    error::add_to_linker::<State, Errors<'static>>(linker, |state| Errors(&mut state.table))
}

struct Errors<'a>(&'a mut ResourceTable);

impl HasData for Errors<'static> {
    type Data<'a> = Errors<'a>;
}

impl error::Host for Errors<'_> {}

impl error::HostError for Errors<'_> {
    fn to_debug_string(&mut self, error: Resource<wasmtime::Error>) -> wasmtime::Result<String> {
        let error = self.0.get(&error)?;
        Ok(words::bounded(&format_args!("{error:#}"), MOST))
    }

    fn drop(&mut self, error: Resource<wasmtime::Error>) -> wasmtime::Result<()> {
        self.0.delete(error)?;
        Ok(())
    }
}
