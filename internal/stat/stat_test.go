package stat

import (
	"reflect"
	"sync"
	"testing"
)

func TestSet(t *testing.T) {
	var s Set
	if all := s.All(); len(all) != 0 {
		t.Fatalf("an untouched set: %v", all)
	}
	s.Add("a", 2)
	s.Add("a", -5)
	s.Set("b", 7)
	c := s.Counter("c")
	c.Add(1)
	c.Set(9)
	s.Counter("untouched").Set(0) // as a gauge is at start
	s.Show("shown")
	s.Add("back", 1)
	s.Add("back", -1)
	want := map[string]int64{"a": -3, "b": 7, "c": 9, "back": 0, "shown": 0}
	if got := s.All(); !reflect.DeepEqual(got, want) {
		t.Fatalf("got %v; want %v", got, want)
	}
	if s.Counter("c") != c || c.Value() != 9 {
		t.Fatal("a counter is found again")
	}
	s.All()["a"] = 100
	if s.Counter("a").Value() != -3 {
		t.Fatal("All gives a copy")
	}
}

func TestConcurrent(t *testing.T) {
	var s Set
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for range 100 {
				s.Add("n", 1)
				s.All()
			}
		})
	}
	wg.Wait()
	if n := s.Counter("n").Value(); n != 5000 {
		t.Fatalf("got %d; want 5000", n)
	}
}

func BenchmarkAdd(b *testing.B) {
	var s Set
	b.ReportAllocs()
	for b.Loop() {
		s.Add("smtp.session", 1)
	}
}
