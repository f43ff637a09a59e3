//! Handing the probes over to the next exporter, and taking them over from the previous one.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::past::Past;
use super::{Engine, Engines};
use crate::config::model::Settings;
use crate::kernel::{Attach, Losses, Pinning};
use crate::layout::Layout;
use crate::metrics::{CarriedSeries, Seat};
use crate::pins::{Folder, MadeBy, PinError, Pins};
use crate::plan::SavedPlan;
use crate::targets::{BankRecord, Beginning};

/// What is written down of all engines together, for the next exporter.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    made_by: MadeBy,
    plan: SavedPlan,
    /// Of each probe, its bank and its number there.
    seats: Vec<(String, usize)>,
    losses: Losses,
    events: BTreeMap<String, u64>,
    carried: Vec<CarriedSeries>,
    since: f64,
}

/// One bank, as an earlier exporter has left it.
fn resume(pins: Pins, settings: &Settings, attach: Attach) -> Result<Engine, String> {
    let none = || format!("bank {} is not complete", pins.name());
    let record: BankRecord = pins.load().map_err(|err| err.to_string())?.ok_or_else(none)?;
    let plan = record.plan.plan(settings)?;
    if Layout::new(&plan).fingerprint() != record.layout {
        return Err("its series are laid out in another way".to_string());
    }
    let pinning = Some(Pinning { pins: Arc::new(pins), taken: Some(record.shape) });
    Engine::start(plan, attach, Beginning { pinning, record: Some(record) }).map_err(|err| err.to_string())
}

impl Engines {
    /// Those that an earlier exporter has left in the folder, with what its series had of probes that are no more; `None` if
    /// there are none.
    ///
    /// # Errors
    /// Why they cannot be taken over.
    pub fn take_over(
        folder: &Arc<Folder>,
        settings: &Settings,
        attach: Attach,
    ) -> Result<Option<(Self, Vec<CarriedSeries>)>, String> {
        let told = |err: PinError| err.to_string();
        let Some(made_by) = folder.load::<MadeBy>().map_err(told)? else { return Ok(None) };
        if made_by.abi != MadeBy::this().abi {
            return Err(format!("version {} made it, whose tables differ", made_by.version));
        }
        let Some(record) = folder.load::<Record>().map_err(told)? else { return Ok(None) };
        if let Some(setting) = record.plan.differs_from(settings) {
            return Err(format!("`{setting}` has changed"));
        }
        let plan = record.plan.plan(settings)?;
        if record.seats.len() != plan.probes.len() {
            return Err("its numbers are inconsistent".to_string());
        }
        let (mut all, mut names): (Vec<Arc<Engine>>, Vec<String>) = (Vec::new(), Vec::new());
        let mut seats = Vec::new();
        for (name, probe) in record.seats {
            let bank = match names.iter().position(|known| *known == name) {
                Some(bank) => bank,
                None => {
                    all.push(Arc::new(resume(folder.bank(&name), settings, attach)?));
                    names.push(name);
                    all.len() - 1
                }
            };
            if probe >= all[bank].plan.probes.len() {
                return Err("its numbers are inconsistent".to_string());
            }
            seats.push(Seat { bank, probe });
        }
        if all.is_empty() {
            return Ok(None);
        }
        folder.remove_but(&names).map_err(told)?;
        log::info!(
            "Took over the probes that version {} left attached ({})",
            made_by.version,
            folder.path().display()
        );
        let (losses, events, since) = (record.losses, record.events, record.since);
        let past = Past { losses, events, since, ..Past::default() };
        let engines = Self::of(Arc::new(plan), all, seats, past, Some(folder.clone()));
        Ok(Some((engines, record.carried)))
    }

    /// Writes down what the next exporter needs to know.
    pub fn save(&self, carried: Vec<CarriedSeries>) {
        let Some(folder) = &self.folder else { return };
        let name =
            |seat: &Seat| self.all[seat.bank].pins.as_ref().map_or_else(String::new, |pins| pins.name());
        let past = self.past();
        let record = Record {
            made_by: MadeBy::this(),
            plan: SavedPlan::of(&self.plan),
            seats: self.seats.iter().map(|seat| (name(seat), seat.probe)).collect(),
            losses: past.losses,
            events: past.events,
            carried,
            since: past.since,
        };
        if let Err(err) = folder.save(&record) {
            log::error!("the pinned state cannot be taken over later: {err}");
        }
    }
}
