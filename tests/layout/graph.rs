//! Imports between the files of a crate, by syntax.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use syn::{
    ItemMod, ItemUse, UseTree,
    visit::{self, Visit},
};

/// Files of a crate, and the files from which each of them imports.
pub(crate) struct ModuleGraph {
    imports: BTreeMap<String, BTreeSet<String>>,
}

/// Reads a file of the repository.
pub(crate) fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Reads all sources of a crate except unit tests.
pub(crate) fn crate_graph(name: &str) -> ModuleGraph {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name).join("src");
    let mut sources = Vec::new();
    collect(&root, &root, &mut sources);
    let sources: Vec<(&str, &str)> = sources.iter().map(|(file, text)| (&**file, &**text)).collect();
    assert!(sources.len() > 3, "{name} has sources");
    ModuleGraph::of_sources(&sources)
}

fn collect(root: &Path, folder: &Path, sources: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let file = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if !is_of_tests(&file) {
                sources.push((file, fs::read_to_string(&path).unwrap()));
            }
        }
    }
}

/// Returns whether a file belongs to a module under `#[cfg(test)]`: tests, fakes and their helpers.
fn is_of_tests(file: &str) -> bool {
    file.trim_end_matches(".rs").split('/').any(|segment| matches!(segment, "tests" | "testing" | "fake"))
}

impl ModuleGraph {
    /// Parses sources, each with its path below `src`.
    pub(crate) fn of_sources(sources: &[(&str, &str)]) -> Self {
        let libraries_last = |file: &&str| *file == "lib.rs";
        let mut files: Vec<&str> = sources.iter().map(|(file, _)| *file).collect();
        files.sort_by_key(libraries_last);
        let files: BTreeMap<Vec<String>, String> =
            files.into_iter().map(|file| (module_path(file), file.to_owned())).collect();
        let mut imports = BTreeMap::new();
        for (file, text) in sources {
            let mut paths = Paths { own: module_path(file), found: Vec::new() };
            paths.visit_file(&syn::parse_file(text).unwrap_or_else(|error| panic!("{file}: {error}")));
            let targets = paths.found.iter().filter_map(|path| {
                let longest = (0..=path.len()).rev().find_map(|length| files.get(&path[..length]));
                longest.filter(|target| target != file).cloned()
            });
            imports.insert((*file).to_owned(), targets.collect());
        }
        Self { imports }
    }

    /// Names of the top-level modules of the crate.
    pub(crate) fn modules(&self) -> BTreeSet<String> {
        self.imports.keys().map(|file| module_of(file).to_owned()).collect()
    }

    /// Imports between different top-level modules: from, to, and the file.
    pub(crate) fn edges(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        let all = self.imports.iter().flat_map(|(file, targets)| targets.iter().map(move |to| (file, to)));
        all.map(|(file, to)| (module_of(file), module_of(to), &**file)).filter(|(from, to, _)| from != to)
    }

    /// Import cycles that involve files of at least two modules. A path through an imported module counts as an import of
    /// the file of that module.
    pub(crate) fn file_cycles_across_modules(&self) -> Vec<Vec<String>> {
        let reachable: BTreeMap<&str, BTreeSet<&str>> =
            self.imports.keys().map(|file| (&**file, self.reachable(file))).collect();
        let mut cycles = BTreeSet::new();
        for (file, targets) in &reachable {
            let cycle: Vec<String> = targets
                .iter()
                .filter(|other| reachable.get(**other).is_some_and(|back| back.contains(file)))
                .map(|other| (*other).to_owned())
                .collect();
            let modules: BTreeSet<&str> = cycle.iter().map(|file| module_of(file)).collect();
            if modules.len() > 1 {
                cycles.insert(cycle);
            }
        }
        cycles.into_iter().collect()
    }

    fn reachable<'a>(&'a self, file: &str) -> BTreeSet<&'a str> {
        let mut seen = BTreeSet::new();
        let mut left: Vec<&'a str> =
            self.imports.get(file).into_iter().flatten().map(String::as_str).collect();
        while let Some(next) = left.pop() {
            if seen.insert(next) {
                left.extend(self.imports.get(next).into_iter().flatten().map(String::as_str));
            }
        }
        seen
    }
}

/// `redis/tls.rs` is `["redis", "tls"]`; the root of the crate is `[]`.
fn module_path(file: &str) -> Vec<String> {
    let path: Vec<String> = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if matches!(path.join("/").as_str(), "lib" | "main") { Vec::new() } else { path }
}

fn module_of(file: &str) -> &str {
    file.trim_end_matches(".rs").split('/').next().unwrap_or_default()
}

/// Collects every path that starts in this crate, from its root.
struct Paths {
    own: Vec<String>,
    found: Vec<Vec<String>>,
}

impl Paths {
    fn add(&mut self, path: &[String]) {
        let mut rest = path;
        let mut base = match rest.first().map(String::as_str) {
            Some("crate") => {
                rest = &rest[1..];
                Vec::new()
            }
            Some("self") => {
                rest = &rest[1..];
                self.own.clone()
            }
            Some("super") => self.own.clone(),
            _ => return,
        };
        while rest.first().is_some_and(|segment| segment == "super") {
            base.pop();
            rest = &rest[1..];
        }
        base.extend(rest.iter().cloned());
        self.found.push(base);
    }

    fn add_tree(&mut self, tree: &UseTree, prefix: &mut Vec<String>) {
        match tree {
            UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.add_tree(&path.tree, prefix);
                prefix.pop();
            }
            UseTree::Group(group) => group.items.iter().for_each(|item| self.add_tree(item, prefix)),
            UseTree::Name(name) if name.ident == "self" => self.add(prefix),
            UseTree::Name(name) => self.add(&[&**prefix, &[name.ident.to_string()]].concat()),
            UseTree::Rename(rename) => self.add(&[&**prefix, &[rename.ident.to_string()]].concat()),
            UseTree::Glob(_) => self.add(prefix),
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.add_tree(&item.tree, &mut Vec::new());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.add(&segments);
        visit::visit_path(self, path);
    }

    /// `pub(crate)` names a module and imports nothing.
    fn visit_vis_restricted(&mut self, _: &'ast syn::VisRestricted) {}

    /// Macros are not parsed. Their text is searched for paths from the root of the crate.
    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        let text = item.tokens.to_string().replace(" :: ", "::");
        let words = text.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
        for path in words.filter(|word| word.starts_with("crate::")) {
            self.add(&path.split("::").map(str::to_owned).collect::<Vec<_>>());
        }
        visit::visit_macro(self, item);
    }

    /// Unit tests may import any module. Paths in other inline modules are rare and start at `crate`.
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        let is_test = item.attrs.iter().any(|attribute| {
            attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
        });
        if !is_test {
            visit::visit_item_mod(self, item);
        }
    }
}
