{{/*
Returns the full name, at most 36 characters. Names are limited to 63 characters; the rest is for the longest suffix and for the hash in a
label of StatefulSet pods.
*/}}
{{- define "likestream.fullname" -}}
{{- $chart := default .Chart.Name .Values.nameOverride -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $name = contains $chart .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $chart) -}}
{{- end -}}
{{- if gt (len $name) 36 -}}
{{- /* The hash keeps truncated names of two releases distinct. */ -}}
{{- $name = printf "%s-%s" ($name | trunc 27 | trimSuffix "-") (sha256sum $name | trunc 8) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{/* Returns the selector labels of a component. They contain no version, because selectors are immutable. */}}
{{- define "likestream.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Returns the labels of pods. Without the chart version, an upgrade restarts pods only if their template changes otherwise. */}}
{{- define "likestream.podLabels" -}}
{{ include "likestream.selector" . }}
app.kubernetes.io/part-of: likestream
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "likestream.labels" -}}
{{ include "likestream.podLabels" . }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "likestream.serviceAccountName" -}}
{{- default (.Values.serviceAccount.create | ternary (include "likestream.fullname" .) "default") .Values.serviceAccount.name -}}
{{- end -}}

{{- define "likestream.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}
