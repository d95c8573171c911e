package httpgate

// RoutePatterns lists the table of routes: METHOD and path.
func RoutePatterns() (all []string) {
	for _, r := range (&Server{}).routes() {
		all = append(all, r.pattern)
	}
	return all
}
