//! The image of nodes' agents, backends and clients: nothing but this program.
//!
//! Owns: the archive that Docker and containerd load, made without a registry and without `docker build`; the same
//! program always makes the same bytes (no time, no owner, sorted), so its tag names its content.

use std::collections::HashMap;
use std::io;

use bollard::query_parameters::{ImportImageOptions, ListImagesOptions, RemoveImageOptions};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::binary::{AgentBinary, hex};
use super::engine::Engine;
use super::error::{EngineError, found};

/// Name of the image, without the tag.
const REPOSITORY: &str = "labctl/node-role";
/// Label of every image that labctl made.
const IMAGE_LABEL: &str = "labctl.image=1";
/// Digits of the program's digest that are the tag.
const TAG_DIGITS: usize = 12;
/// Name of the program in the image.
const PROGRAM: &str = "labctl";

/// An image that is ready to be loaded; clones share its bytes.
#[derive(Clone, Debug)]
pub(crate) struct AgentImage {
    /// `labctl/node-role:<12 digits>`.
    pub(crate) reference: String,
    /// As `docker save` would write it: for `docker load` and `ctr images import`.
    pub(crate) archive: Bytes,
    /// A tar archive with the program alone, for copying it into a folder.
    pub(crate) layer: Bytes,
}

impl AgentImage {
    /// The image of this program.
    pub(crate) fn of(binary: &AgentBinary) -> Self {
        let reference = Self::reference(binary);
        // Writing into memory fails for want of memory only, and that ends the process.
        let layer = tar([(PROGRAM, 0o755, &binary.bytes[..])]);
        let diff = hex(&Sha256::digest(&layer));
        let config = config(&diff);
        let config_name = format!("{}.json", hex(&Sha256::digest(&config)));
        let layer_name = format!("{diff}.tar");
        let manifest = json!([{ "Config": config_name, "RepoTags": [reference], "Layers": [layer_name] }]);
        let manifest = manifest.to_string().into_bytes();
        let mut files = [
            (&*config_name, 0o644, &*config),
            (&*layer_name, 0o644, &*layer),
            ("manifest.json", 0o644, &*manifest),
        ];
        files.sort_by_key(|(name, ..)| *name);
        let archive = tar(files);
        Self { reference, archive: archive.into(), layer: layer.into() }
    }

    /// The name that the image of this program has, without making it.
    pub(crate) fn reference(binary: &AgentBinary) -> String {
        format!("{REPOSITORY}:{}", &binary.digest[..TAG_DIGITS])
    }
}

/// The image's configuration (OCI image-spec, config.md).
fn config(diff: &str) -> Vec<u8> {
    let epoch = "1970-01-01T00:00:00Z";
    let (label, value) = IMAGE_LABEL.split_once('=').unwrap_or((IMAGE_LABEL, ""));
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "created": epoch,
        "config": {
            "Entrypoint": [format!("/{PROGRAM}")],
            "Env": ["PATH=/"],
            "Labels": { label: value },
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff}")] },
        "history": [{ "created": epoch, "created_by": "labctl" }],
    });
    config.to_string().into_bytes()
}

/// Go's name of this machine's architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn tar<'a>(files: impl IntoIterator<Item = (&'a str, u32, &'a [u8])>) -> Vec<u8> {
    let write = || -> io::Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, mode, bytes) in files {
            let mut header = tar::Header::new_ustar();
            header.set_mode(mode);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_size(bytes.len() as u64);
            archive.append_data(&mut header, name, bytes)?;
        }
        archive.into_inner()
    };
    write().expect("writing into memory does not fail, and the names are short")
}

impl Engine {
    /// Whether Docker has this image.
    pub(crate) async fn has_image(&self, reference: &str) -> Result<bool, EngineError> {
        let looked = self.docker.inspect_image(reference).await;
        Ok(found(looked, format!("look for image {reference}"))?.is_some())
    }

    /// Loads the image if Docker does not have it; whether it was loaded.
    pub(crate) async fn load_image(&self, image: &AgentImage) -> Result<bool, EngineError> {
        if self.has_image(&image.reference).await? {
            return Ok(false);
        }
        let body = bollard::body_full(image.archive.clone());
        let mut said = Box::pin(self.docker.import_image(
            ImportImageOptions { quiet: true, ..Default::default() },
            body,
            None,
        ));
        while let Some(line) = said.next().await {
            line.map_err(EngineError::request(format!("load image {}", image.reference)))?;
        }
        Ok(true)
    }

    /// Names of all images that labctl made, of this version and others.
    pub(crate) async fn own_images(&self) -> Result<Vec<String>, EngineError> {
        let filters = HashMap::from([("label".to_owned(), vec![IMAGE_LABEL.to_owned()])]);
        let options = ListImagesOptions { filters: Some(filters), ..Default::default() };
        let images = self.docker.list_images(Some(options)).await;
        let images = images.map_err(EngineError::request("list images"))?;
        // One that lost its name to a newer one of the same tag is known by its identifier.
        let names = |tags: Vec<String>, id| if tags.is_empty() { vec![id] } else { tags };
        Ok(images.into_iter().flat_map(|image| names(image.repo_tags, image.id)).collect())
    }

    /// Removes an image unless a container uses it; whether it is gone by this call.
    pub(crate) async fn remove_image(&self, reference: &str) -> Result<bool, EngineError> {
        let removed = self.docker.remove_image(reference, None::<RemoveImageOptions>, None).await;
        match removed {
            Err(error) if super::error::status(&error) == Some(409) => Ok(false),
            other => Ok(found(other, format!("remove image {reference}"))?.is_some()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(program: &[u8]) -> AgentImage {
        AgentImage::of(&AgentBinary::of(program.to_vec()))
    }

    #[test]
    fn same_program_makes_the_same_bytes() {
        let (one, two, other) = (image(b"program"), image(b"program"), image(b"another"));
        assert_eq!(one.archive, two.archive);
        assert_eq!(one.reference, two.reference);
        assert_ne!(one.archive, other.archive);
        assert_ne!(one.reference, other.reference);
    }

    #[test]
    fn archive_names_its_parts_by_their_digests() {
        let image = image(b"program");
        let mut archive = tar::Archive::new(&image.archive[..]);
        let mut files = HashMap::new();
        for entry in archive.entries().expect("it is a tar archive") {
            let mut entry = entry.expect("it is whole");
            assert_eq!((entry.header().mtime().ok(), entry.header().uid().ok()), (Some(0), Some(0)));
            let name = entry.path().expect("it has a name").display().to_string();
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut entry, &mut bytes).expect("it is in memory");
            files.insert(name, bytes);
        }
        let manifest: serde_json::Value =
            serde_json::from_slice(&files["manifest.json"]).expect("it is JSON");
        let config_name = manifest[0]["Config"].as_str().expect("it names the configuration");
        let config = &files[config_name];
        assert_eq!(config_name, format!("{}.json", hex(&Sha256::digest(config))));
        let config: serde_json::Value = serde_json::from_slice(config).expect("it is JSON");
        let layer = &files[manifest[0]["Layers"][0].as_str().expect("it names the layer")];
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(&Sha256::digest(layer))));
        assert_eq!(config["config"]["Labels"]["labctl.image"], "1");
        assert_eq!(manifest[0]["RepoTags"][0], image.reference);
        assert_eq!(image.layer[..], layer[..]);
    }
}
