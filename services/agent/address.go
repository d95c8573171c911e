package agent

import (
	"fmt"
	"net"
	"strings"
)

// ownAddresses gives ":PORT" as what is advertised the address of this machine: where nobody can tell it beforehand, as
// in a task of Fargate, and nothing but the agent runs that could ask.
func (c *Config) ownAddresses(interfaces func() ([]net.Addr, error)) error {
	for flag, addr := range map[string]*string{"--advertised-addr": &c.AdvertisedAddr, "--rpc-advertised-addr": &c.RPC.Advertised} {
		host, port, err := net.SplitHostPort(*addr)
		if err != nil || host != "" {
			continue // judged where it is used
		}
		own, err := ownAddress(interfaces)
		if err != nil {
			return fmt.Errorf("%s %q: %w: say which address others reach", flag, *addr, err)
		}
		*addr = net.JoinHostPort(own, port)
	}
	return nil
}

// ownAddress is the one address at which other machines can reach this one: of IPv4, if it has any.
func ownAddress(interfaces func() ([]net.Addr, error)) (string, error) {
	addrs, err := interfaces()
	if err != nil {
		return "", fmt.Errorf("list the network's interfaces: %w", err)
	}
	var v4, v6 []string
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		switch {
		case !ok || !n.IP.IsGlobalUnicast(): // loopback and link-local addresses
		case n.IP.To4() != nil:
			v4 = append(v4, n.IP.String())
		default:
			v6 = append(v6, n.IP.String())
		}
	}
	found := v4
	if len(v4) == 0 {
		found = v6
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", fmt.Errorf("this machine has no address but those of loopback and link")
	}
	return "", fmt.Errorf("this machine has several addresses: %s", strings.Join(found, ", "))
}
