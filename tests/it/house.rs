//! The order of the library's files: every import points down, so that a file can be read without
//! those above it. And doc comments that fit on a page.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The rooms, from the lowest floor to the highest. A room imports only from lower floors.
const FLOORS: [&[&str]; 6] = [
    &["error", "deadline", "lock", "observation"],
    &["frames"],
    &["wire", "broker"],
    &["client", "server"],
    &["service"],
    &["fibonacci"],
];

#[test]
fn imports_between_rooms_point_to_a_lower_floor() {
    let floor = |module: &str| {
        let room = module.split("::").next().unwrap();
        let floor = FLOORS.iter().position(|rooms| rooms.contains(&room));
        (room.to_owned(), floor.unwrap_or_else(|| panic!("which floor is {room:?} on?")))
    };
    let mut upward = Vec::new();
    for (module, imported) in imports().into_iter().filter(|(module, _)| !module.is_empty()) {
        let (room, own) = floor(&module);
        for other in imported {
            if other.is_empty() || floor(&other).0 != room && floor(&other).1 >= own {
                upward.push(format!("{module} imports {other:?}"));
            }
        }
    }
    assert!(upward.is_empty(), "{upward:#?}");
}

#[test]
fn no_files_import_each_other() {
    let mut left = imports();
    // Takes away the files that import none of those left, until only circles are left and what is
    // above them, and then what none of those left imports.
    while let Some(free) = {
        let is_free = |module: &&String| {
            let imports_left = left[*module].iter().any(|other| left.contains_key(other));
            let is_imported = left.values().any(|imported| imported.contains(*module));
            !imports_left || !is_imported
        };
        left.keys().find(is_free).cloned()
    } {
        left.remove(&free);
    }
    let circles: Vec<String> = left
        .iter()
        .map(|(module, imported)| {
            let others: Vec<_> =
                imported.iter().filter(|other| left.contains_key(*other)).collect();
            format!("{module} imports {others:?}")
        })
        .collect();
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn doc_comments_are_wrapped() {
    let mut long = Vec::new();
    for (module, text) in files() {
        for line in text.lines().filter(|line| line.chars().count() > 100) {
            let doc = line.trim_start();
            // A row of a table cannot be wrapped.
            if ["///", "//!"].iter().any(|start| doc.starts_with(start)) && !doc.contains("| ") {
                long.push(format!("{module}: {doc}"));
            }
        }
    }
    assert!(long.is_empty(), "{long:#?}");
}

/// The source of each module of the library, without its tests.
fn files() -> BTreeMap<String, String> {
    fn collect(directory: &Path, modules: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            if ["tests", "model", "bin", "guide"].contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() {
                collect(&path, modules);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
                let module = path.strip_prefix(source).unwrap().with_extension("");
                let module = module.to_str().unwrap().replace('/', "::");
                let module = if module == "lib" { String::new() } else { module };
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
                modules.insert(module, code.to_owned());
            }
        }
    }
    let mut modules = BTreeMap::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut modules);
    modules
}

/// The modules that each module imports.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let files = files();
    let of = |module: &String, text: &String| {
        let paths = text.split_inclusive(';').flat_map(|part| {
            let lines = part.lines().filter(|line| !line.trim_start().starts_with("//"));
            let statement = lines.collect::<Vec<_>>().join(" ");
            let imported = statement.split_once("use ").map(|(_, path)| expand(path));
            imported.unwrap_or_default()
        });
        let paths = paths.filter_map(|path| find(module, &path, &files));
        paths.filter(|other| other != module).collect()
    };
    files.iter().map(|(module, text)| (module.clone(), of(module, text))).collect()
}

/// The paths of a `use` statement: `a::{b, c::{d, e}};` has three.
fn expand(tree: &str) -> Vec<String> {
    let tree = tree.trim().trim_end_matches(';').trim();
    let Some((prefix, branches)) = tree.split_once('{') else { return vec![tree.to_owned()] };
    let branches = branches.trim_end().strip_suffix('}').unwrap_or(branches);
    let mut depth = 0;
    let branches = branches.split(|letter: char| {
        depth += i32::from(letter == '{') - i32::from(letter == '}');
        letter == ',' && depth == 0
    });
    let branches = branches.filter(|branch| !branch.trim().is_empty()).flat_map(expand);
    branches.map(|branch| format!("{prefix}{branch}")).collect()
}

/// The innermost module of a path, or none if it belongs to another crate.
fn find(module: &str, path: &str, files: &BTreeMap<String, String>) -> Option<String> {
    let mut found: Vec<&str> = module.split("::").filter(|name| !name.is_empty()).collect();
    let mut names = path.split("::").map(str::trim).peekable();
    match names.peek() {
        Some(&"crate") => found.clear(),
        Some(&("self" | "super")) => {}
        Some(first) if files.contains_key(&join(&found, first)) => {}
        _ => return None,
    }
    for name in names {
        match name {
            "crate" | "self" => {}
            "super" => drop(found.pop()),
            name if files.contains_key(&join(&found, name)) => found.push(name),
            _ => break,
        }
    }
    Some(found.join("::"))
}

fn join(module: &[&str], name: &str) -> String {
    [module, &[name]].concat().join("::")
}
