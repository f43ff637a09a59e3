//! Maps that outlive the exporter.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;

use libbpf_rs::{MapCore, MapHandle, Object, OpenObject};

use crate::pins::EnginePins;

/// Whether a map is one of the tables, not a data section of the object.
fn is_table(name: &OsStr) -> bool {
    !name.to_string_lossy().contains('.')
}

/// Reuses pinned maps if they match the definitions.
pub(super) fn reuse(object: &mut OpenObject, pins: &EnginePins) -> io::Result<()> {
    for mut map in object.maps_mut().filter(|map| is_table(map.name())) {
        let name = map.name().to_string_lossy().into_owned();
        let known = MapHandle::from_pinned_path(pins.map(&name)).map_err(io::Error::other)?;
        let there = (known.map_type(), known.key_size(), known.value_size(), known.max_entries());
        let wanted = (map.map_type(), map.key_size(), map.value_size(), map.max_entries());
        if there != wanted {
            return Err(io::Error::other(format!("the map {name} is {there:?} and would be {wanted:?}")));
        }
        map.reuse_fd(known.as_fd()).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Pins the maps of a loaded object.
pub(super) fn pin_maps(object: &Object, pins: &EnginePins) -> libbpf_rs::Result<()> {
    for map in object.maps().filter(|map| is_table(map.name())) {
        let path = pins.map(&map.name().to_string_lossy());
        MapHandle::try_from(&map)?.pin(path)?;
    }
    Ok(())
}
