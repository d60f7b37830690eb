// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

func TestFloodsAreSeen(t *testing.T) {
	at := time.Unix(1, 0)
	now := func() time.Time { return at }
	for name, c := range map[string]struct {
		write func(f *http2.Framer) error
		most  int // a second; 0: no bound
	}{
		"reset":       {func(f *http2.Framer) error { return f.WriteRSTStream(1, http2.ErrCodeCancel) }, maxResets},
		"ping":        {func(f *http2.Framer) error { return f.WritePing(false, [8]byte{}) }, maxEmpty},
		"settings":    {func(f *http2.Framer) error { return f.WriteSettings() }, maxEmpty},
		"empty data":  {func(f *http2.Framer) error { return f.WriteData(1, false, nil) }, maxEmpty},
		"data":        {func(f *http2.Framer) error { return f.WriteData(1, false, []byte("a")) }, 0},
		"end of data": {func(f *http2.Framer) error { return f.WriteData(1, true, nil) }, 0},
		"windows":     {func(f *http2.Framer) error { return f.WriteWindowUpdate(1, 1) }, 0},
	} {
		var one bytes.Buffer
		if err := c.write(http2.NewFramer(&one, nil)); err != nil {
			t.Fatal(err)
		}
		var f frames
		f.scan([]byte(http2.ClientPreface), now)
		// As many as are allowed, for ten seconds.
		for range 10 {
			at = at.Add(2 * floodSpan)
			for i := range max(c.most, 100_000*boolInt(c.most == 0)) {
				if !f.scan(one.Bytes(), now) {
					t.Fatalf("%s: refused after %d", name, i)
				}
			}
		}
		refused := false
		for range 2 * (c.most + 1) {
			refused = refused || !f.scan(one.Bytes(), now)
		}
		if refused != (c.most > 0) {
			t.Errorf("%s: refused: %v", name, refused)
		}
	}
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// FuzzFrames holds our counting of frames against net/http2's reading, however
// the bytes are cut.
func FuzzFrames(f *testing.F) {
	var seed bytes.Buffer
	framer := http2.NewFramer(&seed, nil)
	_ = framer.WriteSettings()
	_ = framer.WritePing(false, [8]byte{})
	_ = framer.WriteData(1, false, nil)
	_ = framer.WriteData(1, false, []byte("abc"))
	_ = framer.WriteRSTStream(1, 8)
	f.Add(seed.Bytes(), 1)
	f.Add(seed.Bytes(), 7)
	f.Fuzz(func(t *testing.T, data []byte, cut int) {
		var ours frames
		cut = max(1, min(cut, 1000))
		whole := append([]byte(http2.ClientPreface), data...)
		for p := whole; len(p) > 0; {
			n := min(cut, len(p))
			ours.scan(p[:n], func() time.Time { return time.Unix(0, 0) })
			p = p[n:]
		}
		if ours.skip > 0 || ours.got > 0 {
			return // http2 reads whole frames, and the last one is not
		}
		resets, empties := 0, 0
		theirs := http2.NewFramer(io.Discard, bytes.NewReader(data))
		theirs.SetMaxReadFrameSize(1<<24 - 1)
		for {
			frame, err := theirs.ReadFrame()
			if err != nil {
				if !errors.Is(err, io.EOF) {
					return // nothing is read behind what is no frame
				}
				break
			}
			switch frame := frame.(type) {
			case *http2.RSTStreamFrame:
				resets++
			case *http2.DataFrame:
				if frame.Length == 0 && !frame.StreamEnded() {
					empties++
				}
			case *http2.SettingsFrame, *http2.PingFrame, *http2.PriorityFrame, *http2.ContinuationFrame:
				empties++
			}
		}
		if resets < maxResets && empties < maxEmpty && (ours.resets != resets || ours.empties != empties) {
			t.Fatalf("%d resets and %d empty frames, http2 has %d and %d\n%q", ours.resets, ours.empties, resets, empties, data)
		}
	})
}

// FuzzOpening holds our reading of a preface with settings against http2's.
func FuzzOpening(f *testing.F) {
	var seed bytes.Buffer
	seed.WriteString(http2.ClientPreface)
	_ = http2.NewFramer(&seed, nil).WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	f.Add(seed.Bytes())
	f.Add([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x01\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		n, ok := opening(data)
		if !ok || n == 0 {
			return
		}
		rest, is := bytes.CutPrefix(data[:n], []byte(http2.ClientPreface))
		if !is {
			t.Fatalf("taken for a preface: %q", data)
		}
		frame, err := http2.NewFramer(io.Discard, bytes.NewReader(rest)).ReadFrame()
		if err != nil {
			return // http2 itself will say so
		}
		if s, is := frame.(*http2.SettingsFrame); !is || s.IsAck() || int(s.Length)+9 != len(rest) {
			t.Fatalf("taken for settings: %v, %q", frame, data)
		}
	})
}
