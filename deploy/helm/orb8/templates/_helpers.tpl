{{/* On every object. Names are not of the release: a node has room for one agent, so a second release should be refused. */}}
{{- define "orb8.labels" -}}
app.kubernetes.io/name: orb8-agent
app.kubernetes.io/part-of: orb8
{{- end }}

{{/* Never changes: a DaemonSet's selector is immutable, and `orb8` finds the agents by it. */}}
{{- define "orb8.selector" -}}
app.kubernetes.io/name: orb8-agent
{{- end }}

{{- define "orb8.image" -}}
{{- $tag := .Values.image.tag -}}
{{- if not (or $tag .Values.image.digest) -}}
{{- $tag = .Chart.AppVersion -}}
{{- end -}}
{{- .Values.image.repository -}}
{{- with $tag }}:{{ . }}{{ end -}}
{{- with .Values.image.digest }}@{{ . }}{{ end -}}
{{- end }}

{{/* "true" if metrics can be had from outside of the node. */}}
{{- define "orb8.metricsReachable" -}}
{{- if not (has .Values.metrics.host (list "127.0.0.1" "::1")) -}}
true
{{- end -}}
{{- end }}

{{/* The kubelet asks the node's address unless told otherwise. */}}
{{- define "orb8.probeHost" -}}
{{- if not (include "orb8.metricsReachable" .) -}}
{{- .Values.metrics.host -}}
{{- end -}}
{{- end }}

{{/* A setting's value as text. Numbers of values files are floats, which would print as 1e+06. */}}
{{- define "orb8.setting" -}}
{{- if kindIs "slice" . -}}
{{- join "," . -}}
{{- else if kindIs "float64" . -}}
{{- int64 . -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end }}

{{- define "orb8.podAnnotations" -}}
{{- $annotations := dict -}}
{{- if and .Values.metrics.scrapeAnnotations (include "orb8.metricsReachable" .) -}}
{{- $annotations = dict "prometheus.io/scrape" "true" "prometheus.io/port" (.Values.metrics.port | toString) -}}
{{- end -}}
{{- with merge (deepCopy .Values.podAnnotations) $annotations -}}
{{- toYaml . -}}
{{- end -}}
{{- end }}
