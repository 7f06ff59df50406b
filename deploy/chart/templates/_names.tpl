{{/* The fullname leaves room for the longest suffix within 63 characters, and for the hash that a StatefulSet's pods have in a label. */}}
{{- define "likestream.fullname" -}}
{{- $chart := default .Chart.Name .Values.nameOverride -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $name = contains $chart .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $chart) -}}
{{- end -}}
{{- if gt (len $name) 36 -}}
{{- /* Cut off names of two releases must still differ. */ -}}
{{- $name = printf "%s-%s" ($name | trunc 27 | trimSuffix "-") (sha256sum $name | trunc 8) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{/* What a component's pods are selected by: can't be changed once it is installed, so nothing of a version is in it. */}}
{{- define "likestream.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Of pods: without the chart's version, so that a new chart with nothing new for pods restarts none. */}}
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
