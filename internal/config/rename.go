package config

import (
	"maps"
	"reflect"
)

// RenameTables gives tables other names, wherever something names them. It
// changes c, which nobody else may have yet. A name that is not in names stays.
func (c *Config) RenameTables(names map[string]string) {
	tables := make(map[string]*Table, len(c.Tables))
	for name, t := range c.Tables {
		if other, ok := names[name]; ok {
			t.Name, name = other, other
		}
		tables[name] = t
	}
	c.Tables = nil
	rename(reflect.ValueOf(c), maps.Clone(names))
	c.Tables = tables
}

// rename replaces every text within v that is one of names.
func rename(v reflect.Value, names map[string]string) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			rename(v.Elem(), names)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				rename(v.Field(i), names)
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			rename(v.Index(i), names)
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			rename(it.Value(), names) // pointers; text in a map names no table
		}
	case reflect.String:
		if other, ok := names[v.String()]; ok && v.CanSet() {
			v.SetString(other)
		}
	}
}
