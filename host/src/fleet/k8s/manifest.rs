//! Writes the manifest of the job that runs workers.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use bytesize::ByteSize;

use super::super::{EngineError, Spec};
use super::{CONTAINER, DIGEST, LABEL};

/// The maximum number of workers in one Indexed Job.
const MOST_WORKERS: u32 = 100_000;
/// How often Kubernetes replaces a worker after a failure that is not a disruption.
const RETRIES: u32 = 10;
/// How long Kubernetes keeps an ended job and its logs: a week.
const KEPT_SECONDS: u32 = 7 * 24 * 60 * 60;
/// The user of the image.
const USER: &str = "65532";

/// The options, by their names in Kubernetes.
const OPTIONS: &str = "serviceAccountName=NAME, nodeSelector=LABEL=VALUE, tolerations=KEY[=VALUE][:EFFECT], \
    priorityClassName=NAME, imagePullSecrets=NAME, envFrom=SECRET, labels=LABEL=VALUE, \
    persistentVolumeClaim=CLAIM:/PATH, hostPath=/PATH, ephemeral-storage=SIZE, runAsUser=UID or \
    runAsGroup=GID";

/// The manifest of a job with this name and this many workers.
pub(super) fn render(spec: &Spec, job: &str, workers: u32) -> Result<String, EngineError> {
    let options = Options::of(spec)?;
    fit(spec, workers, &options)?;
    let fleet = spec.fleet.as_str();
    let mut labels = vec![(LABEL.to_owned(), fleet.to_owned())];
    labels.extend(options.labels.iter().cloned());
    let labels = map(&labels, 8);
    let digest = text(&spec.digest());
    let mut env = String::new();
    for (name, value) in variables(spec) {
        // Kubernetes replaces `$(NAME)`, but not `$$(NAME)`.
        let value = text(&value.replace('$', "$$"));
        let _ = write!(env, "\n            - {{name: {}, value: {value}}}", text(&name));
    }
    let cpus = text(&spec.cpus.to_string());
    let memory = text(&quantity(spec.memory));
    let (mut storage, mut size) = (String::new(), "{}".to_owned());
    if let Some(limit) = &options.ephemeral_storage {
        storage = format!(", ephemeral-storage: {}", text(limit));
        size = format!("{{sizeLimit: {}}}", text(limit));
    }
    let (mounts, volumes) = options.volumes();
    let user = options.run_as_user.as_deref().unwrap_or(USER);
    let group = options.run_as_group.as_deref().unwrap_or(USER);
    let image = text(&spec.image);
    let stop = spec.stop_time.as_secs();
    Ok(format!(
        "\
# {workers} workers of the fleet {fleet}. Create them with: kubectl create --filename FILE
apiVersion: batch/v1
kind: Job
metadata:
  name: {job}
  labels: {{{LABEL}: {fleet}}}
  annotations: {{{DIGEST}: {digest}}}
spec:
  # In a job that is not indexed, a worker that ends well keeps others from being replaced.
  completionMode: Indexed
  completions: {workers}
  parallelism: {workers}
  backoffLimitPerIndex: {RETRIES}
  ttlSecondsAfterFinished: {KEPT_SECONDS}
  podFailurePolicy:
    rules:
      # The node went away or was drained. This does not count.
      - {{action: Ignore, onPodConditions: [{{type: DisruptionTarget, status: \"True\"}}]}}
      # The worker was stopped, and released its running tasks.
      - {{action: Ignore, onExitCodes: {{containerName: {CONTAINER}, operator: In, values: [4]}}}}
      # A setting is wrong. Starting again does not help.
      - {{action: FailJob, onExitCodes: {{containerName: {CONTAINER}, operator: In, values: [2]}}}}
  template:
    metadata:
      labels:{labels}
      annotations: {{{DIGEST}: {digest}}}
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: {stop}{placement}
      # Workers do not talk to Kubernetes.
      automountServiceAccountToken: false
      # A service named `host` would set variables that begin with HOST_.
      enableServiceLinks: false
      securityContext:
        runAsNonRoot: true
        runAsUser: {user}
        runAsGroup: {group}
        fsGroup: {group}
        fsGroupChangePolicy: OnRootMismatch
        seccompProfile: {{type: RuntimeDefault}}
      containers:
        - name: {CONTAINER}
          image: {image}
          args: [run]
          env:{env}
            - {{name: POD_NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
            - {{name: POD_NAMESPACE, valueFrom: {{fieldRef: {{fieldPath: metadata.namespace}}}}}}{secrets}
          resources:
            requests: {{cpu: {cpus}, memory: {memory}{storage}}}
            limits: {{cpu: {cpus}, memory: {memory}}}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {{drop: [ALL]}}
          livenessProbe:
            exec: {{command: [/host, health]}}
            initialDelaySeconds: 15
            periodSeconds: 30
            timeoutSeconds: 10
            failureThreshold: 6
          volumeMounts:
            - {{name: cache, mountPath: /cache}}
            - {{name: tmp, mountPath: /tmp}}{mounts}
      volumes:
        - {{name: cache, emptyDir: {size}}}
        - {{name: tmp, emptyDir: {{}}}}{volumes}
",
        placement = options.placement(),
        secrets = options.secrets(),
    ))
}

/// The variables of a worker.
fn variables(spec: &Spec) -> impl Iterator<Item = (String, String)> {
    let mut variables = spec.environment.clone();
    // Kubernetes decides by the exit code whether to replace a worker: it replaces a worker that
    // was stopped and released tasks, but not one that ended by itself.
    variables.remove("HOST_EXIT_ZERO");
    for (name, value) in [("HOST_CACHE_DIR", "/cache"), ("HOST_LISTEN", "127.0.0.1:8080")] {
        variables.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }
    variables.into_iter()
}

/// Rejects settings that Kubernetes does not support.
fn fit(spec: &Spec, workers: u32, options: &Options) -> Result<(), EngineError> {
    let unfit = |problem: String, cure: &str| {
        Err(EngineError::Unfit { problem, cure: Some(cure.to_owned()) })
    };
    if workers > MOST_WORKERS {
        let problem = format!("a job of Kubernetes has at most {MOST_WORKERS} workers");
        return unfit(problem, "use several fleets");
    }
    if spec.walltime.is_some() || spec.relay > 1 {
        let problem = "--walltime, --relay: Kubernetes gives workers no time limit".to_owned();
        return unfit(problem, "let workers end by themselves with --for");
    }
    if !spec.pass.is_empty() {
        let problem =
            "--pass-env: everybody who may read the job could read its variables".to_owned();
        return unfit(problem, "put them into a secret, and name it: --option envFrom=SECRET");
    }
    let mounted: Vec<&Path> = options.mounted().collect();
    let is_mounted = |path: &&Path| mounted.iter().any(|mount| path.starts_with(mount));
    let paths = spec.paths.iter().map(|path| &**path);
    if let Some(path) = paths.into_iter().find(|path| !is_mounted(path)) {
        let problem =
            format!("{}: pods do not see the directories of this machine", path.display());
        return unfit(
            problem,
            "use a queue and a bucket of a cloud, or mount a shared file system at the same path: \
             --option persistentVolumeClaim=CLAIM:/PATH or --option hostPath=/PATH",
        );
    }
    Ok(())
}

/// The options of a fleet for Kubernetes.
#[derive(Debug, Default)]
struct Options {
    service_account: Option<String>,
    priority_class: Option<String>,
    node_selector: Vec<(String, String)>,
    tolerations: Vec<String>,
    pull_secrets: Vec<String>,
    secrets: Vec<String>,
    labels: Vec<(String, String)>,
    claims: Vec<(String, String)>,
    host_paths: BTreeSet<String>,
    ephemeral_storage: Option<String>,
    run_as_user: Option<String>,
    run_as_group: Option<String>,
}

impl Options {
    fn of(spec: &Spec) -> Result<Self, EngineError> {
        let mut options = Self::default();
        for (name, values) in &spec.options {
            for value in values {
                options.add(name, value)?;
            }
        }
        Ok(options)
    }

    fn add(&mut self, name: &str, value: &str) -> Result<(), EngineError> {
        let wrong = |problem: &str| EngineError::Unfit {
            problem: format!("--option {name}={value}: {problem}"),
            cure: Some(format!("the options for Kubernetes are {OPTIONS}")),
        };
        let owned = || value.to_owned();
        let pair = |separator| {
            let (key, value) = value.split_once(separator).ok_or_else(|| wrong("is incomplete"))?;
            Ok((key.to_owned(), value.to_owned()))
        };
        let number = || match value.parse::<u32>() {
            Ok(0) => Err(wrong("workers do not run as root")),
            Ok(_) => Ok(value.to_owned()),
            Err(_) => Err(wrong("is not a number")),
        };
        match name {
            "serviceAccountName" => self.service_account = Some(owned()),
            "priorityClassName" => self.priority_class = Some(owned()),
            "nodeSelector" => self.node_selector.push(pair('=')?),
            "tolerations" => self.tolerations.push(owned()),
            "imagePullSecrets" => self.pull_secrets.push(owned()),
            "envFrom" => self.secrets.push(owned()),
            "labels" => self.labels.push(pair('=')?),
            "persistentVolumeClaim" => self.claims.push(pair(':')?),
            "hostPath" => drop(self.host_paths.insert(owned())),
            "ephemeral-storage" => self.ephemeral_storage = Some(owned()),
            "runAsUser" => self.run_as_user = Some(number()?),
            "runAsGroup" => self.run_as_group = Some(number()?),
            _ => return Err(wrong("is not an option for Kubernetes")),
        }
        if self.mounted().any(|path| path.is_relative()) {
            return Err(wrong("is not an absolute path"));
        }
        Ok(())
    }

    /// The directories where volumes are mounted.
    fn mounted(&self) -> impl Iterator<Item = &Path> {
        let claims = self.claims.iter().map(|(_, path)| path);
        claims.chain(&self.host_paths).map(Path::new)
    }

    /// The fields of the pod for scheduling and identity.
    fn placement(&self) -> String {
        let mut fields = String::new();
        let mut field = |name: &str, value: String| {
            let space = if value.starts_with('\n') { "" } else { " " };
            let _ = write!(fields, "\n      {name}:{space}{value}");
        };
        if let Some(name) = &self.service_account {
            field("serviceAccountName", text(name));
        }
        if let Some(name) = &self.priority_class {
            field("priorityClassName", text(name));
        }
        if !self.node_selector.is_empty() {
            field("nodeSelector", map(&self.node_selector, 8));
        }
        let list = |items: &[String], item: &dyn Fn(&str) -> String| {
            items.iter().map(|text| format!("\n        - {}", item(text))).collect::<String>()
        };
        if !self.tolerations.is_empty() {
            field("tolerations", list(&self.tolerations, &toleration));
        }
        if !self.pull_secrets.is_empty() {
            let named = |name: &str| format!("{{name: {}}}", text(name));
            field("imagePullSecrets", list(&self.pull_secrets, &named));
        }
        fields
    }

    /// The field of the container that adds secrets.
    fn secrets(&self) -> String {
        let item =
            |name: &String| format!("\n            - {{secretRef: {{name: {}}}}}", text(name));
        let items: String = self.secrets.iter().map(item).collect();
        if items.is_empty() { items } else { format!("\n          envFrom:{items}") }
    }

    /// The mounts of the container, and the volumes of the pod.
    fn volumes(&self) -> (String, String) {
        let claims = self.claims.iter().map(|(claim, path)| {
            (path, format!("persistentVolumeClaim: {{claimName: {}}}", text(claim)))
        });
        let paths = self
            .host_paths
            .iter()
            .map(|path| (path, format!("hostPath: {{path: {}, type: Directory}}", text(path))));
        let (mut mounts, mut volumes) = (String::new(), String::new());
        for (number, (path, source)) in claims.chain(paths).enumerate() {
            let path = text(path);
            let _ = write!(mounts, "\n            - {{name: shared-{number}, mountPath: {path}}}");
            let _ = write!(volumes, "\n        - {{name: shared-{number}, {source}}}");
        }
        (mounts, volumes)
    }
}

/// Converts `KEY`, `KEY=VALUE`, `KEY:EFFECT` or `KEY=VALUE:EFFECT`, the syntax of `kubectl taint`.
fn toleration(given: &str) -> String {
    let (taint, effect) = match given.rsplit_once(':') {
        Some((taint, effect)) => (taint, Some(effect)),
        None => (given, None),
    };
    let mut fields = match taint.split_once('=') {
        Some((key, value)) => {
            format!("key: {}, operator: Equal, value: {}", text(key), text(value))
        }
        None => format!("key: {}, operator: Exists", text(taint)),
    };
    if let Some(effect) = effect {
        let _ = write!(fields, ", effect: {}", text(effect));
    }
    format!("{{{fields}}}")
}

/// The lines of a mapping.
fn map(pairs: &[(String, String)], indent: usize) -> String {
    let line =
        |(key, value): &(String, String)| format!("\n{:indent$}{}: {}", "", text(key), text(value));
    pairs.iter().map(line).collect()
}

/// A text in YAML. Each JSON string is also a YAML string.
fn text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn quantity(size: ByteSize) -> String {
    const MIB: u64 = 1 << 20;
    match size.as_u64() {
        bytes if bytes % MIB == 0 => format!("{}Mi", bytes / MIB),
        bytes => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;

    fn spec(options: &[(&str, &str)]) -> Spec {
        let mut grouped = BTreeMap::<String, Vec<String>>::new();
        for (name, value) in options {
            grouped.entry((*name).to_owned()).or_default().push((*value).to_owned());
        }
        let environment = [("HOST_QUEUE", "sqs://tasks"), ("HOST_BUCKET", "s3://data")];
        Spec {
            fleet: "night".parse().unwrap(),
            cpus: 4,
            memory: ByteSize::gib(8),
            image: "example.org/host:1".to_owned(),
            program: "/usr/bin/host".into(),
            walltime: None,
            relay: 1,
            stop_time: Duration::from_secs(45),
            directory: "/home/me".into(),
            paths: BTreeSet::new(),
            environment: environment
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            pass: BTreeSet::new(),
            options: grouped,
        }
    }

    #[track_caller]
    fn refused(spec: &Spec, workers: u32, want: &str) {
        let error = render(spec, "night-1", workers).expect_err(want);
        assert!(error.to_string().contains(want), "{error}");
        assert!(error.cure().is_some(), "{error}");
    }

    #[test]
    fn a_manifest_says_what_was_asked_for() {
        let manifest = render(&spec(&[]), "night-1", 40).unwrap();
        for want in [
            "name: night-1\n",
            "completions: 40\n  parallelism: 40\n",
            "limits: {cpu: \"4\", memory: \"8192Mi\"}",
            "terminationGracePeriodSeconds: 45\n",
            "{name: \"HOST_QUEUE\", value: \"sqs://tasks\"}",
            "{name: \"HOST_CACHE_DIR\", value: \"/cache\"}",
        ] {
            assert!(manifest.contains(want), "{want}\n{manifest}");
        }
    }

    #[test]
    fn a_text_is_never_a_part_of_the_manifest() {
        let mut spec = spec(&[("nodeSelector", "a=\"}\n#: {")]);
        spec.environment.insert("HOST_PREFIX".to_owned(), "x\"}\n  evil: true".to_owned());
        let manifest = render(&spec, "night-1", 1).unwrap();
        assert!(manifest.contains(r#"value: "x\"}\n  evil: true"}"#), "{manifest}");
        assert!(manifest.contains(r##""a": "\"}\n#: {""##), "{manifest}");
        spec.environment.insert("HOST_PREFIX".to_owned(), "$(HOME)".to_owned());
        let manifest = render(&spec, "night-1", 1).unwrap();
        assert!(manifest.contains(r#"value: "$$(HOME)"}"#), "{manifest}");
    }

    #[test]
    fn directories_must_be_on_a_volume_of_the_pods() {
        let mut spec = spec(&[("persistentVolumeClaim", "lab:/lab"), ("hostPath", "/scratch")]);
        spec.paths = ["/lab/queue".into(), "/scratch/bucket".into()].into();
        let manifest = render(&spec, "night-1", 1).unwrap();
        for want in [
            "{name: shared-0, mountPath: \"/lab\"}",
            "{name: shared-0, persistentVolumeClaim: {claimName: \"lab\"}}",
            "{name: shared-1, hostPath: {path: \"/scratch\", type: Directory}}",
        ] {
            assert!(manifest.contains(want), "{want}\n{manifest}");
        }
        spec.paths.insert("/laboratory/queue".into());
        refused(&spec, 1, "/laboratory/queue: pods do not see the directories of this machine");
    }

    #[test]
    fn what_kubernetes_does_not_have_is_refused() {
        refused(&spec(&[]), 100_001, "at most 100000 workers");
        let walltime = Some(Duration::from_secs(3600));
        refused(&Spec { walltime, ..spec(&[]) }, 1, "no time limit");
        refused(&Spec { relay: 2, ..spec(&[]) }, 1, "no time limit");
        let pass = BTreeSet::from(["AWS_SECRET_ACCESS_KEY".to_owned()]);
        refused(&Spec { pass, ..spec(&[]) }, 1, "everybody who may read the job");
        for (name, value, want) in [
            ("partition", "main", "is not an option for Kubernetes"),
            ("runAsUser", "0", "workers do not run as root"),
            ("runAsGroup", "lab", "is not a number"),
            ("nodeSelector", "spot", "is incomplete"),
            ("persistentVolumeClaim", "lab:lab", "is not an absolute path"),
        ] {
            refused(&spec(&[(name, value)]), 1, want);
        }
    }

    #[test]
    fn tolerations_are_written_as_taints() {
        for (given, want) in [
            ("spot", r#"{key: "spot", operator: Exists}"#),
            ("spot:NoSchedule", r#"{key: "spot", operator: Exists, effect: "NoSchedule"}"#),
            (
                "a.b/spot=true:NoExecute",
                r#"{key: "a.b/spot", operator: Equal, value: "true", effect: "NoExecute"}"#,
            ),
        ] {
            assert_eq!(toleration(given), want);
        }
    }
}
