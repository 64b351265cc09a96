//! The files of a recipe.

use rbee::pkgbuild::Origin;
use rbee::wire::{Code, Failure};
use std::path::{Path, PathBuf};
use std::pin::Pin;

/// Local files of a recipe, from a folder.
pub struct Folder(pub PathBuf);

impl Origin for Folder {
    fn file<'a>(
        &'a self,
        name: &'a str,
        to: &'a Path,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>> {
        Box::pin(async move {
            let from = self.0.join(name);
            std::fs::copy(&from, to)
                .map(|_| ())
                .map_err(|_| Failure::new(Code::NotFound, format!("the recipe has no file `{name}`")))
        })
    }
}
