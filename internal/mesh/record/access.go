// SPDX-License-Identifier: Apache-2.0

package record

import (
	"strconv"

	"github.com/sonagi/sonagi/internal/mesh/gateway"
)

// appendAccess writes a line in the format that Envoy has by default, which
// those know who have read a log of Kourier's or Istio's gateway:
//
//	[start] "METHOD PATH PROTOCOL" status flags received sent ms upstream-ms "x-forwarded-for" "user-agent" "x-request-id" "authority" "pod"
//
// Where Envoy has a flag, the rule that refused is written. The time of the pod
// is not measured by itself.
func appendAccess(out []byte, r *gateway.Report) []byte {
	out = append(out, '[')
	out = r.Began.UTC().AppendFormat(out, "2006-01-02T15:04:05.000Z")
	out = append(out, `] "`...)
	out = appendOr(out, r.Method())
	out = append(out, ' ')
	out = appendOr(out, r.Target())
	out = append(out, ' ')
	out = append(out, r.Version()...)
	out = append(out, `" `...)
	out = strconv.AppendInt(out, int64(r.Status), 10)
	out = append(out, ' ')
	out = appendRule(out, r.Rule)
	for _, n := range []int64{r.In, r.Out, r.Took.Milliseconds()} {
		out = append(out, ' ')
		out = strconv.AppendInt(out, n, 10)
	}
	out = append(out, ` - "`...)
	if forwarded := r.Field("x-forwarded-for"); len(forwarded) > 0 {
		out = appendSafe(out, forwarded)
		out = append(out, ',')
	}
	out = append(out, r.Client...)
	out = append(out, `" "`...)
	out = appendOr(out, r.Field("user-agent"))
	out = append(out, `" "`...)
	out = appendOr(out, r.Field("x-request-id"))
	out = append(out, `" "`...)
	out = appendOr(out, r.Host())
	out = append(out, `" "`...)
	if r.Pod != nil {
		out = r.Pod.Addr.AppendTo(out)
	} else {
		out = append(out, '-')
	}
	return append(out, "\"\n"...)
}

// appendRule writes a rule as one word.
func appendRule(out []byte, rule string) []byte {
	if rule == "" {
		return append(out, '-')
	}
	from := len(out)
	out = appendSafe(out, []byte(rule))
	for i := from; i < len(out); i++ {
		if out[i] == ' ' {
			out[i] = '_'
		}
	}
	return out
}

func appendOr(out, p []byte) []byte {
	if len(p) == 0 {
		return append(out, '-')
	}
	return appendSafe(out, p)
}

// maxWord bounds what a client can put into a line.
const maxWord = 2048

// appendSafe writes bytes from outside so that they end neither a line nor a
// quotation.
func appendSafe(out, p []byte) []byte {
	if len(p) > maxWord {
		p = p[:maxWord]
	}
	for _, b := range p {
		switch {
		case b == '"' || b == '\\':
			out = append(out, '\\', b)
		case b < ' ' || b == 0x7f:
			out = append(out, '\\', 'x', digits[b>>4], digits[b&15])
		default:
			out = append(out, b)
		}
	}
	return out
}

const digits = "0123456789abcdef"
