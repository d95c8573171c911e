{{- define "cirrolog.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- /* Names of pods and of the headless service are labels of DNS, with a suffix each. */}}
{{- define "cirrolog.fullname" -}}
{{- $name := include "cirrolog.name" . }}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "cirrolog.headless" -}}{{ include "cirrolog.fullname" . }}-headless{{- end }}

{{- define "cirrolog.selector" -}}
app.kubernetes.io/name: {{ include "cirrolog.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "cirrolog.labels" -}}
{{ include "cirrolog.selector" . }}
app.kubernetes.io/component: {{ .Values.role }}
app.kubernetes.io/part-of: cirrolog
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "cirrolog.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "cirrolog.fullname" .) .Values.serviceAccount.name }}
{{- else }}{{ default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "cirrolog.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag }}{{ end }}
{{- end }}
{{- end }}

{{- /* What a schema can't say in words that help. */}}
{{- define "cirrolog.check" -}}
{{- with .Values }}
{{- if not .image.repository }}{{ fail "image.repository is missing: build infra/Dockerfile, push it, and say where it is" }}{{ end }}
{{- if not (or .image.tag .image.digest) }}{{ fail "image.tag is missing (or image.digest)" }}{{ end }}
{{- if not .bucket }}{{ fail "bucket is missing: s3://BUCKET/PREFIX?region=…, the same for all agents of the cluster" }}{{ end }}
{{- if not (or .metadata.url .metadata.existingSecret) }}{{ fail "metadata.url is missing: redis://…, rediss://… or dynamodb://… (or metadata.existingSecret, a Secret that has it)" }}{{ end }}
{{- if and .metadata.url .metadata.existingSecret }}{{ fail "metadata.url and metadata.existingSecret can't be given together" }}{{ end }}
{{- if and .rpc.tls.existingSecret .rpc.token.existingSecret }}{{ fail "rpc.tls.existingSecret and rpc.token.existingSecret can't be given together: certificates need no token" }}{{ end }}
{{- if ne (len (uniq (list (int .ports.kafka) (int .ports.http) (int .ports.admin) (int .ports.rpc)))) 4 }}{{ fail "ports: kafka, http, admin and rpc must be four different ports" }}{{ end }}
{{- if and (not .persistence.enabled) (eq (dig "topic-config" "durability" "" .config) "local") }}{{ fail "config.topic-config.durability=local needs persistence.enabled: what such topics acknowledge is on the disk of their pod alone" }}{{ end }}
{{- if and .serviceMonitor.enabled .networkPolicy.enabled (not .networkPolicy.admin) }}{{ fail "serviceMonitor.enabled needs networkPolicy.admin: nobody may reach the admin port without it, Prometheus neither" }}{{ end }}
{{- end }}
{{- end }}
