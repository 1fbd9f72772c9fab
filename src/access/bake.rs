//! Baked boxes: which one fits, and what would be baked.

use super::{World, image_wanted};
use crate::artifacts;
use crate::boxes::{self, Origin};
use crate::engine::StepError;
use crate::explain::FailureKind;
use crate::k3s;
use crate::machines::MachineState;
use crate::observed::files::INSTALLER;
use crate::observed::{Baked, View};
use crate::os::hash;
use crate::spec::{BakeChoice, Role};

/// Raised when what is baked of the same becomes something else.
const RECIPE: &str = "1";

/// Bakes a box for a cluster, and says what it does.
pub type Baker = Box<dyn Fn(&World, &mut dyn FnMut(&str)) -> Result<(), StepError> + Send + Sync>;

impl World {
    /// Whether machines start from a baked box, as far as it can be told without a connection. Those that are there lie over
    /// what they were made from, so that another one is of no use where none is made.
    pub fn look_for_baked(&self, makes: bool) -> Result<Baked, StepError> {
        let choice = self.cluster.bake;
        if !makes && let Some(image) = self.state.facts()?.image {
            return Ok(image.baked.map_or(Baked::No, Baked::Fits));
        }
        if choice == BakeChoice::Never || !self.machines.kind().takes_built_boxes() {
            return Ok(Baked::No);
        }
        let auto = choice == BakeChoice::Auto;
        Ok(match self.to_bake()? {
            Some((_, wanted)) => match self.baked_as(&wanted.key)? {
                Some(manifest) => Baked::Fits(manifest.name),
                None if auto => Baked::Due,
                None => Baked::No,
            },
            None if auto || self.any_baked()? => Baked::Unknown,
            None => Baked::No,
        })
    }

    /// Whether a machine of the cluster is to be made.
    pub fn makes_machines(&self) -> bool {
        let seen = self.seen();
        let view = View::new(&self.cluster, &seen);
        self.cluster.nodes.iter().any(|n| view.machine(n).state == MachineState::Absent)
    }

    /// The baked box that fits, if there is one.
    pub fn fitting(&self) -> Result<Option<boxes::Manifest>, StepError> {
        let Some((_, wanted)) = self.to_bake()? else { return Ok(None) };
        self.baked_as(&wanted.key)
    }

    fn baked_as(&self, key: &str) -> Result<Option<boxes::Manifest>, StepError> {
        let mut all = self.library.list()?.into_iter();
        Ok(all.find(|m| matches!(&m.origin, Origin::Baked(baked) if baked.key == key)))
    }

    /// Whether any was baked of the spec's box as it is.
    fn any_baked(&self) -> Result<bool, StepError> {
        let image = image_wanted(self)?;
        let of = |m: &boxes::Manifest| matches!(&m.origin, Origin::Baked(baked) if baked.image == image);
        Ok(self.library.list()?.iter().any(of))
    }

    /// What a box would be called that fits, and what it would be baked of; none while it is not known which k3s is wanted.
    pub fn to_bake(&self) -> Result<Option<(String, boxes::Baked)>, StepError> {
        let Ok(arch) = artifacts::arch(std::env::consts::ARCH) else { return Ok(None) };
        let seen = self.seen();
        let Some(wanted) = seen.here.wanted.get(&arch) else { return Ok(None) };
        let (image, arch) = (image_wanted(self)?, arch.name().to_owned());
        let mut parts = vec![RECIPE.to_owned(), image.clone(), arch.clone()];
        for role in [Role::Server, Role::Worker] {
            parts.push(k3s::install(role, INSTALLER, true).line());
        }
        parts.extend(wanted.iter().map(|file| format!("{} {} {:o}", file.path, file.sha256, file.mode)));
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let key = hash::hex(&hash::parts(&parts)[..8]);
        let from = super::box_label(&self.cluster.image);
        let version = seen.here.version.clone();
        let shown = version.as_deref().unwrap_or("k3s").replace('+', "-");
        let plain: String = from.chars().take(40).collect();
        let name = format!("{}-{shown}-{}", plain.trim_start_matches(['-', '.', '_']), &key[..8]);
        let files = wanted.iter().map(|file| (file.path.clone(), file.sha256.clone())).collect();
        Ok(Some((name.to_lowercase(), boxes::Baked { key, from, image, arch, k3s: version, files })))
    }

    /// Bakes one; it fits then.
    pub fn bake(&self, say: &mut dyn FnMut(&str)) -> Result<boxes::Manifest, StepError> {
        (self.baker)(self, say)?;
        self.fitting()?.ok_or_else(|| {
            let what = "the box that was baked does not fit: what it is made of has changed meanwhile";
            StepError::new(what, "`p1 retry` bakes another one.").kind(FailureKind::Conflict)
        })
    }
}
