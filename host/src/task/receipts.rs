//! Reads the receipt of a task before the task starts and before its outputs are published, and
//! writes it after they are published.
//!
//! Of two attempts, the first to write a receipt wins. The other publishes nothing once it sees the
//! receipt. A host that can't read or write a receipt keeps the result and tries again, as with a
//! report.

use std::io::{self, Seek};
use std::sync::atomic::Ordering::Relaxed;

use super::{Attempt, not_found};
use crate::blocking::{SMALL, blocking};
use crate::bucket::{BucketError, Revision};
use crate::cache::CacheError;
use crate::catalog::Ready;
use crate::digest::Digest;
use crate::failure::Failure;
use crate::fault::{self, Step};
use crate::key::BucketKey;
use crate::lease::Lease;
use crate::message::Task;
use crate::prefetch::{Brought, PrefetchError, ReadObject};
use crate::publish::{self, Published, PutOutput};
use crate::receipt::{self, Draft, Found, ReadInput, Receipt, Receipts, Unusable};
use crate::sandbox::{Input, InputContent, RunError};
use crate::services::Services;

/// The place of a task's receipt, and what was found there.
pub(super) struct ReceiptPlace {
    receipts: Receipts,
    /// The digest of the task's content.
    content: Digest,
    /// The object that the new receipt replaces: a receipt whose component or inputs have changed
    /// since, or an object that is not a receipt.
    replaces: Option<Revision>,
    /// The receipt of a task that named inputs itself. It is valid if the plan names the same
    /// inputs again, and these are unchanged.
    planned: Option<Receipt>,
    /// Whether the task names inputs itself.
    has_plan: bool,
}

/// The inputs of a task, for its receipt.
pub(crate) struct Inputs(Vec<(BucketKey, InputContent, ReadObject)>);

impl Inputs {
    pub(crate) fn new(inputs: &[Input], objects: &[ReadObject]) -> Self {
        let each = inputs.iter().zip(objects);
        let each =
            each.map(|(one, object)| (one.path.clone(), one.content.clone(), object.clone()));
        Self(each.collect())
    }

    /// The keys and digests of the inputs, sorted by key.
    pub(crate) async fn facts(self) -> Result<Vec<ReadInput>, Failure> {
        let mut facts = Vec::with_capacity(self.0.len());
        for (path, content, ReadObject { key, version }) in self.0 {
            let (sha256, size) = match content {
                InputContent::Bytes(bytes) => (Digest::of(&bytes), bytes.len() as u64),
                InputContent::File { source, size } => match source.digest() {
                    Some(digest) => (digest, size),
                    None => {
                        let read = move || {
                            let file = source.open()?;
                            (&*file).rewind()?;
                            let digest = Digest::of_reader(&*file)?;
                            source.closes(&file);
                            Ok::<_, io::Error>(digest)
                        };
                        let read = if size <= SMALL { read() } else { blocking(read).await };
                        read.map_err(|error| RunError::Host(format!("input `{path}`: {error}")))?
                    }
                },
            };
            facts.push(ReadInput { key, sha256, size, version: version.tag });
        }
        facts.sort_by(|one, other| one.key.cmp(&other.key));
        Ok(facts)
    }
}

impl Attempt {
    /// The published outputs, if the task's receipt says that it is done.
    pub(super) async fn done_before(
        &mut self,
        services: &Services,
        task: &Task,
    ) -> Result<Option<Published>, Failure> {
        let Some(receipts) = services.receipts.clone() else { return Ok(None) };
        let content = receipt::content(task);
        let place =
            ReceiptPlace { receipts, content, replaces: None, planned: None, has_plan: false };
        let place = self.receipt.insert(place);
        let found = match place.receipts.find(&content).await {
            Ok(found) => found,
            Err(error) => {
                services.outages.begins(&services.reading_receipts(), &error);
                return Err(Failure::Outage(error.to_string()));
            }
        };
        services.outages.ends(&services.reading_receipts());
        fault::point(Step::ReceiptRead);
        match found {
            Found::Nothing => Ok(None),
            Found::Unusable { why, revision } => {
                let key = receipt::key(&content);
                match why {
                    Unusable::Withdrawn => tracing::debug!("the receipt {key} {why}"),
                    _ => tracing::warn!("the receipt {key} {why}; the task runs and replaces it"),
                }
                place.replaces = Some(revision);
                Ok(None)
            }
            Found::Receipt { receipt, revision, .. } => {
                if services.config.data.skip_unchanged && receipt.planned {
                    place.replaces = Some(revision);
                    place.planned = Some(receipt);
                    return Ok(None);
                }
                if services.config.data.skip_unchanged
                    && !is_unchanged(services, task, &receipt).await?
                {
                    place.replaces = Some(revision);
                    return Ok(None);
                }
                self.component = Some(receipt.component);
                Ok(Some(receipt.published()))
            }
        }
    }

    /// The published outputs, if the task has a receipt and its plan names the receipt's inputs.
    pub(super) async fn done_before_as_planned(
        &mut self,
        component: &Ready,
        brought: &Brought<'_>,
    ) -> Result<Option<Published>, Failure> {
        let Some(place) = &mut self.receipt else { return Ok(None) };
        place.has_plan = true;
        let Some(receipt) = place.planned.take() else { return Ok(None) };
        if receipt.component != component.digest {
            return Ok(None);
        }
        let now = Inputs::new(&brought.inputs, &brought.objects).facts().await?;
        brought.in_place.check()?;
        let read = |inputs: &[ReadInput]| -> Vec<_> {
            inputs.iter().map(|input| (input.key.clone(), input.sha256)).collect()
        };
        Ok((read(&now) == read(&receipt.inputs)).then(|| receipt.published()))
    }

    /// The outputs that another attempt has published since this one started, if it left a receipt.
    pub(super) async fn done_meanwhile(
        &mut self,
        services: &Services,
        lease: &Lease,
    ) -> Result<Option<Published>, Failure> {
        let Some(place) = &mut self.receipt else { return Ok(None) };
        match place.find(services, lease).await? {
            Found::Receipt { revision, .. } if Some(&revision) == place.replaces.as_ref() => {
                Ok(None)
            }
            Found::Receipt { receipt, .. } => {
                tracing::info!("another attempt has finished the task; this one publishes nothing");
                services.stats.done_before.fetch_add(1, Relaxed);
                Ok(Some(receipt.published()))
            }
            Found::Unusable { revision, .. } => {
                place.replaces = Some(revision);
                Ok(None)
            }
            Found::Nothing => {
                place.replaces = None;
                Ok(None)
            }
        }
    }

    /// Writes a receipt for published outputs. If another attempt wrote one first, returns the
    /// outputs in that receipt.
    pub(super) async fn leave_receipt(
        &mut self,
        services: &Services,
        lease: &Lease,
        published: Published,
        inputs: &[ReadInput],
        outputs: &[PutOutput],
    ) -> Result<Published, Failure> {
        let (Some(place), Some(component)) = (&mut self.receipt, self.component) else {
            return Ok(published);
        };
        let bytes = Draft {
            content: place.content,
            message: &lease.message().body,
            attempt: lease.attempt(),
            component,
            mode: services.sandbox.mode(),
            inputs,
            planned: place.has_plan,
            outputs,
            steps: &self.steps,
            memory: self.memory,
            cpu_time: self.cpu_time,
        }
        .to_bytes();
        loop {
            let ReceiptPlace { receipts, content, replaces, .. } = &*place;
            let add = || receipts.add(content, bytes.clone(), replaces.as_ref());
            if insist(services, lease, &services.writing_receipts(), add).await? {
                break;
            }
            match place.find(services, lease).await? {
                // An earlier request wrote the receipt, but its response was lost.
                Found::Receipt { bytes: there, .. } if there == bytes => break,
                Found::Receipt { receipt, .. } => {
                    if let Some(key) = receipt.first_difference(outputs) {
                        tracing::error!(
                            "another attempt has finished the task while this one published, and \
                             the output {key} is not the same; `host receipts verify` finds tasks \
                             whose outputs do not match their receipt"
                        );
                    }
                    services.stats.done_before.fetch_add(1, Relaxed);
                    return Ok(receipt.published());
                }
                Found::Unusable { revision, .. } => place.replaces = Some(revision),
                Found::Nothing => place.replaces = None,
            }
        }
        fault::point(Step::ReceiptPut);
        if services.config.data.durable {
            publish::sync(&*services.bucket).await?;
        }
        Ok(published)
    }
}

impl ReceiptPlace {
    /// Reads the receipt again.
    async fn find(&self, services: &Services, lease: &Lease) -> Result<Found, Failure> {
        let find = || self.receipts.find(&self.content);
        insist(services, lease, &services.reading_receipts(), find).await
    }
}

/// Repeats an operation until it succeeds, for as long as the lease lasts. For tasks that have a
/// result to keep.
async fn insist<T, F: Future<Output = Result<T, BucketError>>>(
    services: &Services,
    lease: &Lease,
    name: &(dyn std::fmt::Display + Sync),
    operation: impl Fn() -> F,
) -> Result<T, Failure> {
    loop {
        if !lease.is_ours() {
            return Err(Failure::LeaseLost);
        }
        let error = match operation().await {
            Ok(done) => {
                services.outages.ends(name);
                return Ok(done);
            }
            Err(error) => error,
        };
        let wait = services.outages.begins(name, &error);
        if !services.wait_with(lease, wait).await {
            return Err(match lease.is_ours() {
                true => RunError::Cancelled.into(),
                false => Failure::LeaseLost,
            });
        }
    }
}

/// Whether the component and inputs of a task are those of its receipt. An input with another
/// version but the same bytes is unchanged.
async fn is_unchanged(
    services: &Services,
    task: &Task,
    receipt: &Receipt,
) -> Result<bool, Failure> {
    let component = services.catalog.digest(&task.name).await;
    if component.map_err(|error| not_found(services, error))? != receipt.component {
        return Ok(false);
    }
    let (cache, bucket) = (&services.inputs.cache, &services.inputs.bucket);
    let freshness = services.inputs.freshness;
    for input in &task.inputs {
        let key = task.base_directory.join(input);
        let failed = |error: CacheError| PrefetchError::from_cache(input, &key, error);
        // A receipt lists its inputs in the order of their keys.
        let found = receipt.inputs.binary_search_by(|read| read.key.cmp(&key));
        let Some(read) = found.ok().and_then(|n| receipt.inputs.get(n)) else { return Ok(false) };
        let version = cache.version(&**bucket, &key, freshness).await.map_err(failed)?;
        if version.tag == read.version {
            continue;
        }
        let digest = match bucket.is_local() {
            true => bucket.digest(&key).await.map_err(|error| failed(error.into()))?.0,
            false => {
                let blob = cache.fetch_version(&**bucket, &key, version).await;
                blob.map_err(failed)?.digest
            }
        };
        if digest != read.sha256 {
            return Ok(false);
        }
    }
    Ok(true)
}
