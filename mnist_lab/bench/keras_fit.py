"""Keras as in its documentation: Sequential, compile, fit. KERAS_BACKEND chooses the backend."""

import sys

import keras
from keras import layers

from mnist_lab.bench.work import BATCH_SIZES, Clock, arrays

network, epochs = sys.argv[1], int(sys.argv[2])
x_train, y_train, x_test, y_test = arrays()

hidden, optimizer = {
    "A3": (
        [
            layers.Flatten(),
            layers.Dense(512, activation="relu"),
            layers.Dropout(0.2),
            layers.Dense(512, activation="relu"),
            layers.Dropout(0.2),
        ],
        "rmsprop",
    ),
    "B": (
        [
            layers.Conv2D(30, kernel_size=5, activation="relu"),
            layers.MaxPooling2D(pool_size=2),
            layers.Dropout(0.2),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
        ],
        "adam",
    ),
    "C": ([layers.Flatten(), layers.Dense(784, activation="relu"), layers.Dense(32, activation="relu")], "sgd"),
    "D": ([layers.Flatten(), layers.Dense(512, activation="relu")], "adam"),
}[network]
model = keras.Sequential([keras.Input(shape=(28, 28, 1)), *hidden, layers.Dense(10, activation="softmax")])
model.compile(loss="sparse_categorical_crossentropy", optimizer=optimizer, metrics=["accuracy"])

clock = Clock()
model.fit(
    x_train, y_train, batch_size=BATCH_SIZES[network], epochs=epochs, verbose=2, validation_data=(x_test, y_test),
    callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=clock.tick, on_train_end=clock.tick)],
)  # fmt: skip
clock.report(lambda: model.evaluate(x_test, y_test, batch_size=1000, verbose=0)[1])
