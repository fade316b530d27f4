package account

import (
	"context"
	"sync"
)

// logCache holds values that were read from the store until the log tells that they changed.
type logCache[K comparable, V any] struct {
	max int // values held

	mu      sync.Mutex
	values  map[K]V
	loading map[*loadMark[K]]struct{}
}

// loadMark is a load under way. What the log says during it makes its result stale, while what was said before it was
// committed before its snapshot was taken.
type loadMark[K comparable] struct {
	key   K
	stale bool
}

func newLogCache[K comparable, V any](max int) *logCache[K, V] {
	return &logCache[K, V]{max: max, values: map[K]V{}, loading: map[*loadMark[K]]struct{}{}}
}

// get returns the value of a key, loading it where needed. Values are shared: nobody changes them.
func (c *logCache[K, V]) get(ctx context.Context, key K, load func(ctx context.Context) (V, error)) (V, error) {
	c.mu.Lock()
	if v, ok := c.values[key]; ok {
		c.mu.Unlock()
		return v, nil
	}
	mark := &loadMark[K]{key: key}
	c.loading[mark] = struct{}{}
	c.mu.Unlock()

	v, err := load(ctx)

	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.loading, mark)
	if err != nil || mark.stale {
		return v, err
	}
	for k := range c.values {
		if len(c.values) < c.max {
			break
		}
		delete(c.values, k) // any will do: it is loaded again when it is wanted
	}
	c.values[key] = v
	return v, nil
}

// drop forgets one value.
func (c *logCache[K, V]) drop(key K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.values, key)
	for mark := range c.loading {
		if mark.key == key {
			mark.stale = true
		}
	}
}

// clear forgets all values.
func (c *logCache[K, V]) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.values)
	for mark := range c.loading {
		mark.stale = true
	}
}
