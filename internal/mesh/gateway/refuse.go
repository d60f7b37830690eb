// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"net/http"
	"strconv"
	"time"
)

// refusal is an answer of our own. The rule is for the log.
type refusal struct {
	status int
	rule   string
	// body is what the client reads; without one it is the rule for those who
	// sent nonsense, and nothing for the rest.
	body string
	// location is where to go instead.
	location string
}

func refuse(status int, rule string) *refusal {
	return &refusal{status: status, rule: rule, body: rule + "\n"}
}

// Error implements error.
func (r *refusal) Error() string { return r.rule }

var refuseHeadSize = refuse(431, "header fields too large")

// append writes the refusal as a response.
func (r *refusal) append(out []byte, now time.Time, close, bodyless bool) []byte {
	out = append(out, "HTTP/1.1 "...)
	out = strconv.AppendInt(out, int64(r.status), 10)
	out = append(out, ' ')
	out = append(out, http.StatusText(r.status)...)
	out = append(out, "\r\nDate: "...)
	out = now.UTC().AppendFormat(out, http.TimeFormat)
	if r.location != "" {
		out = append(out, "\r\nLocation: "...)
		out = append(out, r.location...)
	}
	if r.body != "" {
		out = append(out, "\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff"...)
	}
	out = append(out, "\r\nContent-Length: "...)
	out = strconv.AppendInt(out, int64(len(r.body)), 10)
	if close {
		out = append(out, "\r\nConnection: close"...)
	}
	out = append(out, "\r\n\r\n"...)
	if bodyless {
		return out
	}
	return append(out, r.body...)
}
