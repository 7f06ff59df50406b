{{/*
Pods mount each Secret as files in /etc/likestream/<name>/. These templates return the Secrets of a component as a YAML list of name,
secret and items (keys of the Secret and their file names; without items, all keys).
*/}}

{{/* Secret and key default independently to those for all programs. */}}
{{- define "likestream.files.url" -}}
- name: {{ .name }}
  secret: {{ default .all.existingSecret .own.existingSecret }}
  items:
    - key: {{ default .all.key .own.key }}
      path: url
{{ end -}}

{{- define "likestream.files.key" -}}
- name: {{ .name }}
  secret: {{ .from.existingSecret }}
  items:
    - key: {{ .from.key }}
      path: {{ .path }}
{{ end -}}

{{- define "likestream.files.tls" -}}
- name: {{ .name }}
  secret: {{ .from.existingSecret }}
  items:
    {{- with .from.ca }}
    - key: {{ . }}
      path: ca.crt
    {{- end }}
    {{- if .from.cert }}
    - key: {{ .from.cert }}
      path: tls.crt
    - key: {{ .from.key }}
      path: tls.key
    {{- end }}
{{ end -}}

{{- define "likestream.files.redis" -}}
{{ include "likestream.files.url" (dict "name" "redis" "own" .own "all" .root.Values.redis) }}
{{- if .root.Values.redis.tls.existingSecret }}
{{ include "likestream.files.tls" (dict "name" "redis-tls" "from" .root.Values.redis.tls) }}
{{- end }}
{{- end -}}

{{- define "likestream.files.database" -}}
{{ include "likestream.files.url" (dict "name" "database" "own" .own "all" .root.Values.database) }}
{{- with default .root.Values.database.tls.existingSecret .own.tls.existingSecret }}
- name: database-tls
  secret: {{ . }}
{{- end }}
{{- end -}}

{{- define "likestream.files.otel" -}}
{{- if and .Values.otel.endpoint .Values.otel.tls.existingSecret }}
{{ include "likestream.files.tls" (dict "name" "otel-tls" "from" .Values.otel.tls) }}
{{- end }}
{{- end -}}

{{- define "likestream.files.ingest" -}}
{{ include "likestream.files.redis" (dict "root" . "own" .Values.ingest.redis) }}
{{ include "likestream.files.otel" . }}
{{- with .Values.ingest.auth }}
{{- if .apiKeys.existingSecret }}
{{ include "likestream.files.key" (dict "name" "api-keys" "from" .apiKeys "path" "api-keys") }}
{{- end }}
{{- if .jwt.verifier.existingSecret }}
{{ include "likestream.files.key" (dict "name" "jwt-key" "from" .jwt.verifier "path" "jwt-key") }}
{{- end }}
{{- if .jwt.jwksCa.existingSecret }}
{{ include "likestream.files.key" (dict "name" "jwks-ca" "from" .jwt.jwksCa "path" "ca.crt") }}
{{- end }}
{{- end }}
{{- if .Values.ingest.tls.existingSecret }}
{{ include "likestream.files.tls" (dict "name" "tls" "from" .Values.ingest.tls) }}
{{- end }}
{{- end -}}

{{- define "likestream.files.consumer" -}}
{{ include "likestream.files.redis" (dict "root" . "own" .Values.consumer.redis) }}
{{ include "likestream.files.database" (dict "root" . "own" .Values.consumer.database) }}
{{ include "likestream.files.otel" . }}
{{- end -}}

{{- define "likestream.files.likesctl" -}}
{{ include "likestream.files.redis" (dict "root" . "own" .Values.toolbox.redis) }}
{{ include "likestream.files.database" (dict "root" . "own" .Values.toolbox.database) }}
{{- end -}}

{{- define "likestream.files.migration" -}}
{{ include "likestream.files.database" (dict "root" . "own" .Values.migration.database) }}
{{- end -}}

{{/* Converts such a list to volumes. */}}
{{- define "likestream.volumes" -}}
{{- range . }}
- name: {{ .name }}
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
    {{- with .items }}
    items:
      {{- toYaml . | nindent 6 }}
    {{- end }}
{{- end }}
{{- end -}}

{{/* Converts such a list to volume mounts. */}}
{{- define "likestream.volumeMounts" -}}
{{- range . }}
- name: {{ .name }}
  mountPath: /etc/likestream/{{ .name }}
  readOnly: true
{{- end }}
{{- end -}}
