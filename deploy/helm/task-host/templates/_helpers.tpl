{{- define "task-host.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "task-host.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
app.kubernetes.io/name: {{ .Chart.Name | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
{{- end -}}

{{- define "task-host.serviceAccount" -}}
{{- if .Values.serviceAccount.name -}}
{{- .Values.serviceAccount.name -}}
{{- else if .Values.serviceAccount.create -}}
{{- include "task-host.name" . -}}
{{- else -}}
default
{{- end -}}
{{- end -}}

{{- define "task-host.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- /* How Kubernetes handles a failed worker. */ -}}
{{- define "task-host.failures" -}}
rules:
  # The node was lost or drained. This failure does not count.
  - action: Ignore
    onPodConditions:
      - {type: DisruptionTarget, status: "True"}
  # The worker was stopped, and released its running tasks.
  - action: Ignore
    onExitCodes: {containerName: host, operator: In, values: [4]}
  # A setting is wrong, so starting again does not help.
  - action: FailJob
    onExitCodes: {containerName: host, operator: In, values: [2]}
{{- end -}}

{{- define "task-host.pod" -}}
metadata:
  labels:
    {{- include "task-host.labels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: {{ .Values.stopSeconds }}
  serviceAccountName: {{ include "task-host.serviceAccount" . | quote }}
  # Workers do not use the Kubernetes API.
  automountServiceAccountToken: false
  # A service named `host` would set variables that begin with HOST_.
  enableServiceLinks: false
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . | quote }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: host
      image: {{ include "task-host.image" . | quote }}
      args: [run]
      env:
        - {name: HOST_QUEUE, value: {{ required "queue: where workers take tasks from, such as sqs://my-tasks" .Values.queue | quote }}}
        - {name: HOST_BUCKET, value: {{ required "bucket: where the data is, such as s3://my-data" .Values.bucket | quote }}}
        - {name: HOST_CACHE_DIR, value: /cache}
        - {name: HOST_EXIT_WHEN_IDLE, value: {{ .Values.exitWhenIdle | quote }}}
        - {name: HOST_GRACE, value: {{ printf "%ds" (sub (int .Values.stopSeconds) 15) | quote }}}
        # Only `host health` in the container uses this address. Other pods cannot reach it.
        - {name: HOST_LISTEN, value: "127.0.0.1:8080"}
        {{- range $name, $value := .Values.settings }}
        - {name: {{ $name | upper | replace "-" "_" | printf "HOST_%s" | quote }}, value: {{ $value | toString | quote }}}
        {{- end }}
        {{- range $name, $value := .Values.env }}
        - {name: {{ $name | quote }}, value: {{ $value | toString | quote }}}
        {{- end }}
        # Reports and logs name the worker by these variables.
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
      {{- with .Values.secrets }}
      envFrom:
        {{- range . }}
        - {secretRef: {name: {{ . | quote }}}}
        {{- end }}
      {{- end }}
      resources:
        requests:
          cpu: {{ .Values.cpus | quote }}
          memory: {{ .Values.memory | quote }}
          ephemeral-storage: {{ .Values.cache | quote }}
        limits:
          # The host reads its number of slots from the limit.
          cpu: {{ .Values.cpus | quote }}
          memory: {{ .Values.memory | quote }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      livenessProbe:
        exec: {command: [/host, health]}
        initialDelaySeconds: 15
        periodSeconds: 30
        timeoutSeconds: 10
        failureThreshold: 6
      volumeMounts:
        - {name: cache, mountPath: /cache}
        - {name: tmp, mountPath: /tmp}
        {{- with .Values.volumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - {name: cache, emptyDir: {sizeLimit: {{ .Values.cache | quote }}}}
    - {name: tmp, emptyDir: {sizeLimit: 1Gi}}
    {{- with .Values.volumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
