// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Load asks a service again and again, from some clients at once, each on
// a connection of its own.
type Load struct {
	mu      sync.Mutex
	answers []Answer
	stop    context.CancelFunc
	clients sync.WaitGroup
}

// An Answer is what became of one request.
type Answer struct {
	Sent time.Time
	Took time.Duration
	Err  string // empty for 200
}

// Load starts to ask host's path. A client waits a little between its requests,
// so that what is measured is the platform and not the machine's limit.
func (p *Platform) Load(host, path string, clients int) *Load {
	ctx, stop := context.WithCancel(context.Background())
	l := &Load{stop: stop}
	for range clients {
		l.clients.Go(func() {
			transport := &http.Transport{MaxIdleConnsPerHost: 1}
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport, Timeout: time.Minute}
			for ctx.Err() == nil {
				l.add(ask(client, p.URL()+path, host))
				select {
				case <-ctx.Done():
				case <-time.After(5 * time.Millisecond):
				}
			}
		})
	}
	return l
}

// ask is not ended early by the end of the load: each request that was sent is accounted for.
func ask(client *http.Client, url, host string) (a Answer) {
	a.Sent = time.Now()
	defer func() { a.Took = time.Since(a.Sent) }()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		a.Err = err.Error()
		return a
	}
	req.Host = host
	resp, err := client.Do(req)
	if err != nil {
		a.Err = err.Error()
		return a
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		a.Err = err.Error()
	case resp.StatusCode != http.StatusOK:
		a.Err = resp.Status + " " + strings.TrimSpace(string(body))
	}
	return a
}

func (l *Load) add(a Answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answers = append(l.answers, a)
}

// Count is how many requests were answered so far.
func (l *Load) Count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.answers)
}

// Stop ends the load and returns all answers.
func (l *Load) Stop() Answers {
	l.stop()
	l.clients.Wait()
	return l.answers
}

// Answers are those of a load.
type Answers []Answer

// Failed says what failed, and how often.
func (all Answers) Failed() (failed []string) {
	count := map[string]int{}
	for _, a := range all {
		if a.Err != "" {
			count[a.Err]++
		}
	}
	for text, n := range count {
		failed = append(failed, fmt.Sprintf("%d × %s", n, text))
	}
	slices.Sort(failed)
	return failed
}

// Resumed is how long after t the first answer came to a request that was sent after t.
func (all Answers) Resumed(t time.Time) time.Duration {
	first := time.Duration(-1)
	for _, a := range all {
		if at := a.Sent.Add(a.Took).Sub(t); a.Err == "" && a.Sent.After(t) && (first < 0 || at < first) {
			first = at
		}
	}
	return first
}

// Percentile of the times until the answer; 100 is the longest.
func (all Answers) Percentile(percent int) time.Duration {
	if len(all) == 0 {
		return 0
	}
	took := make([]time.Duration, 0, len(all))
	for _, a := range all {
		took = append(took, a.Took)
	}
	slices.Sort(took)
	return took[min(len(took)*percent/100, len(took)-1)]
}
