// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"net/netip"
	"testing"
)

func TestSmoke(t *testing.T) {
	o := testOptions(t)
	m := open(t, o)
	a, b := acquire(t, m, "a"), acquire(t, m, "b")
	serve(t, a.NetNS, ":8080", "a")
	serve(t, b.NetNS, ":8080", "b")
	fmt.Println(mustAsk(t, a.NetNS, "tcp", endpoint(b, 8080).String()))
	fmt.Println(mustAsk(t, ownNS, "tcp", endpoint(b, 8080).String()))
	err := m.Program(testContext(t), []Service{{Name: "ns/web:http", ClusterIP: netip.MustParseAddr("10.143.0.5"), Proto: TCP, Port: 80, NodePort: 30080, Endpoints: []netip.AddrPort{endpoint(a, 8080), endpoint(b, 8080)}}})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		fmt.Println(mustAsk(t, a.NetNS, "tcp", "10.143.0.5:80"))
		fmt.Println(mustAsk(t, ownNS, "tcp", "10.143.0.5:80"))
		fmt.Println(mustAsk(t, ownNS, "tcp", "127.0.0.1:30080"))
	}
}
